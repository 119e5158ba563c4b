"""The data set in the autoencoder's latent space, encoded once before training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from langevin.networks.autoencoder import AutoencoderKL
from langevin.training.data import PictureSet
from langevin.training.objectives.autoencoder import encode_all


class Encode(Protocol):
    """`encode_all` of one data set, or what gives the same."""

    def __call__(self, indices: Tensor | None = None, *, mirrored: bool = False) -> tuple[Tensor, Tensor]: ...


class Latents:
    """Mean and standard deviation of each picture's latent and, where pictures are mirrored, of its mirror image's."""

    def __init__(self, network: AutoencoderKL, data: PictureSet, device: str, encode: Encode | None = None) -> None:
        """Encodes all pictures; float32, on the CPU. encode: does it in the place of `encode_all`."""
        self.data = data
        encode = encode or partial(encode_all, network, data, device)
        members = [torch.nonzero(data.bucket == b).flatten() for b in range(len(data.parts))]
        self._plain = [encode(m) for m in members]
        self._mirrored = [encode(m, mirrored=True) for m in members] if data.flip else []

    @property
    def shape(self) -> tuple[int, ...]:
        """C h w in the fullest bucket."""
        return tuple(max((mean for mean, _ in self._plain), key=len).shape[1:])

    def of(self, samples: Sequence[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) for a step's (epoch, index) pairs, all of one bucket, B C h w: of the pictures as
        `PictureSet.views` gives them."""
        indices = torch.tensor([i for _, i in samples])
        bucket, rows = int(self.data.bucket[indices[0]]), self.data.row[indices]
        mean, deviation = (values[rows] for values in self._plain[bucket])
        flipped = self.data.flips(samples, seed)
        if bool(flipped.any()):
            where = flipped.view(-1, 1, 1, 1)
            mirrored = (values[rows] for values in self._mirrored[bucket])
            mean, deviation = (torch.where(where, m, p) for m, p in zip(mirrored, (mean, deviation), strict=True))
        return mean, deviation
