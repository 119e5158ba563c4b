"""Drawn shapes from a text and a map: of depth (5 input channels), or of classes (10: five classes beside the latent
would be read as inpainting, so there is a sixth that does not occur).

Command:   langevin train shapes-depth --data shapes --out runs/shapes-depth        (shapes-semantic alike)
Data:      langevin shapes shapes
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 1 h of one core, reckoned from 83, 243 and 44 samples/s beside other work (benchmarks/recipes.py)
Expected:  34 dB of the autoencoder, as of the recipe `shapes`; the denoiser was not run to its end
"""

from __future__ import annotations

import dataclasses

from langevin.training.conditioned import ConditionedConfig
from langevin.training.conditions import Condition, Depth, Semantic
from langevin.training.recipes.shapes import shapes


def shapes_depth() -> ConditionedConfig:
    """Drawn shapes from a text and a depth map, 32 x 32 pixels."""
    return _with_map(Depth(), 5)


def shapes_semantic() -> ConditionedConfig:
    """Drawn shapes from a text and a map of classes, 32 x 32 pixels."""
    return _with_map(Semantic(classes=6), 10)


def _with_map(condition: Condition, channels: int) -> ConditionedConfig:
    """The recipe `shapes` with further input channels: its autoencoder and CLIP can be copied from a run of it."""
    plain = shapes()
    network = dataclasses.replace(plain.diffusion.network, in_channels=channels)
    parts = {name: getattr(plain, name) for name in ("seed", "data", "captions", "autoencoder", "clip")}
    diffusion = plain.diffusion.model_copy(update={"network": network, "preview_prompts": ("",) * 8})
    return ConditionedConfig(**parts, diffusion=diffusion, condition=condition)
