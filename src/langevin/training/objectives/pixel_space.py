"""Pixels in the place of latents, for objectives that work on either."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.training.data import PictureSet


class PixelSpace:
    """What `Latents` and `Autoencoder` are for latents: the pictures themselves, at `size` x `size` pixels."""

    scale_factor = 1.0

    def __init__(self, data: PictureSet, size: int) -> None:
        """size: a divisor of the data's; smaller pictures are means over areas."""
        self.data = data
        self.shape = (3, size, size)

    def of(self, samples: Sequence[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor]:
        """(pictures, zeros), each float32 B 3 S S: nothing about a picture is random. As `PictureSet.views` gives
        them."""
        images = F.adaptive_avg_pool2d(self.data.views(samples, seed), self.shape[-1])
        return images, torch.zeros_like(images)

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures, as they are."""
        return latents
