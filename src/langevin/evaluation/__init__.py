"""Measurements: how good a sampler or a model is."""
