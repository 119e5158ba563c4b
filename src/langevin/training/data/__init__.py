"""Captioned pictures: read from files of several formats, held in memory at one size, or at one for each bucket."""

from __future__ import annotations

from langevin.training.data.buckets import BucketConfig
from langevin.training.data.config import DataConfig
from langevin.training.data.pictures import PictureSet
from langevin.training.data.reading import read_data

__all__ = ["BucketConfig", "DataConfig", "PictureSet", "read_data"]
