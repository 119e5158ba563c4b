"""Pixels of a picture set, with one channel where the pictures are grey."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langevin.errors import DataError
from langevin.training.data import PictureSet

LEVELS = 256
"""Values of a pixel's channel: 0 ... 255, brought to [-1, 1]."""


def check_channels(data: PictureSet, channels: int, size: int) -> None:
    """DataError unless the pictures are `size` pixels wide, and grey where `channels` is 1."""
    if channels == 1 and not is_grey(data):
        raise DataError("the pictures have colours and the network one channel: set channels to 3")
    if data.pictures.shape[-1] != size:
        raise DataError(f"the pictures are {data.pictures.shape[-1]} pixels wide, the network takes {size}")


def pixels(data: PictureSet, indices: Sequence[int] | Tensor, channels: int) -> Tensor:
    """float32 B C H W in [-1, 1] with 1 or 3 channels."""
    return data.pictures[torch.as_tensor(indices), :channels].float() / 127.5 - 1


def to_levels(images: Tensor) -> Tensor:
    """int64, the same shape: 0 ... 255 of pixels in [-1, 1], to the nearest."""
    return ((images.double() + 1) * 127.5).round().long().clamp(0, LEVELS - 1)


def from_levels(levels: Tensor) -> Tensor:
    """float32 in [-1, 1] of levels 0 ... 255."""
    return levels.float() / 127.5 - 1


def as_rgb(images: Tensor) -> Tensor:
    """B 3 H W of B 1 H W or B 3 H W, held to [-1, 1]."""
    return images.expand(-1, 3, -1, -1).clamp(-1, 1)


def is_grey(data: PictureSet) -> bool:
    """Whether no picture has a colour."""
    return not any(bool((part != part[:, :1]).any()) for part in data.pictures.split(4096))
