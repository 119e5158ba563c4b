"""Captioned pictures: read from files of several formats, held in memory at one size."""

from __future__ import annotations

from langevin.training.data.config import DataConfig
from langevin.training.data.pictures import PictureSet
from langevin.training.data.reading import read_data

__all__ = ["DataConfig", "PictureSet", "read_data"]
