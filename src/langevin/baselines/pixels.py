"""Pixels of a picture set, with one channel where the pictures are grey."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from langevin.errors import DataError
from langevin.training.data import PictureSet

LEVELS = 256
"""Values of a pixel's channel: 0 ... 255, brought to [-1, 1]."""


def check_channels(data: PictureSet, channels: int, size: int) -> None:
    """DataError unless the pictures are `size` pixels wide and high, and grey where `channels` is 1."""
    if len(data.parts) > 1 or data.parts[0].shape[-2:] != (size, size):
        sizes = ", ".join(f"{part.shape[-1]} x {part.shape[-2]}" for part in data.parts)
        raise DataError(f"the pictures have {sizes} pixels, the network takes {size} x {size} alone")
    if channels == 1 and not is_grey(data):
        raise DataError("the pictures have colours and the network one channel: --set STAGE.network.channels=3")


def pixels(data: PictureSet, samples: Sequence[tuple[int, int]], seed: int, channels: int) -> Tensor:
    """What is to be seen of a step's (epoch, index) pairs, float32 B C H W in [-1, 1] with 1 or 3 channels."""
    return data.views(samples, seed)[:, :channels]


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
