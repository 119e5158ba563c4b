"""The data set in the autoencoder's latent space, encoded once before training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from langevin.networks.autoencoder import AutoencoderKL
from langevin.training.caching import CacheConfig, cached_latents
from langevin.training.data import PictureSet


class Latents:
    """Mean and standard deviation of each picture's latent and, where pictures are mirrored, of its mirror image's."""

    def __init__(self, network: AutoencoderKL, data: PictureSet, device: str, cache: CacheConfig, run: Path) -> None:
        """Encodes all pictures that the cache does not hold; float32, on the CPU."""
        self.data = data
        buckets = range(len(data.parts))
        encode = partial(cached_latents, network, data, device, cache, run)
        self._plain = [encode(b) for b in buckets]
        self._mirrored = [encode(b, mirrored=True) for b in buckets] if data.flip else []

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
