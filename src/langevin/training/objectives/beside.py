"""What a denoiser is given beside the noised data, in further input channels: for training, and to show."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning
from langevin.model.low_resolution import noised_picture
from langevin.training.data import PictureSet
from langevin.training.masks import random_mask
from langevin.training.randomness import generator, normal


class Examples(NamedTuple):
    """Some samples, always the same, for previews."""

    indices: list[int]
    cond: Conditioning
    shown: list[Tensor]
    """Rows of pictures B 3 H W in [-1, 1], to stand above what is made from them."""


class Beside(ABC):
    """One kind of further channels."""

    def __init__(self, data: PictureSet, seed: int, facts: dict[str, Any]) -> None:
        self.data = data
        self.seed = seed
        self.facts = facts
        """What has to be the same when a run is resumed (JSON)."""

    @abstractmethod
    def given(self, indices: list[int], flipped: Tensor, streams: Sequence[torch.Generator]) -> Conditioning:
        """`concat` and `labels` for some pictures, on the CPU, mirrored where `flipped`; row i is random by stream i
        alone."""

    @abstractmethod
    def shown(self, indices: list[int], cond: Conditioning) -> list[Tensor]:
        """What people are shown of a conditioning, as `Examples.shown`."""

    def of(self, samples: Sequence[tuple[int, int]], streams: Sequence[torch.Generator]) -> Conditioning:
        """What belongs to the (epoch, index) pairs of a step, as `PictureSet.views` gives the pictures."""
        return self.given([i for _, i in samples], self.data.flips(samples, self.seed), streams)

    def examples(self, count: int) -> Examples:
        """`count` samples at equal distances."""
        indices = torch.linspace(0, len(self.data) - 1, count).long().tolist()
        streams = [generator(0, "preview", i) for i in indices]
        cond = self.given(indices, torch.zeros(count, dtype=torch.bool), streams)
        return Examples(indices, cond, self.shown(indices, cond))


class Hidden(Beside):
    """Inpainting in the layout of Stable Diffusion: the mask, and the latents of the picture with grey under it."""

    def __init__(self, data: PictureSet, seed: int, autoencoder: Autoencoder, whole_share: float) -> None:
        super().__init__(data, seed, {"kind": "inpainting", "whole_share": whole_share})
        self.autoencoder = autoencoder
        self.whole_share = whole_share

    def given(self, indices: list[int], flipped: Tensor, streams: Sequence[torch.Generator]) -> Conditioning:
        images = self.data.images(indices, flipped)
        masks = self._masks(images, streams)
        return self.conditioning(images, masks, streams)

    @torch.no_grad()
    def conditioning(self, images: Tensor, masks: Tensor, streams: Sequence[torch.Generator]) -> Conditioning:
        """images: B 3 H W in [-1, 1]; masks: B 1 H W, 1 where hidden. The latents are samples of the posterior, as the
        published model was trained on; the mask is brought to their size by its nearest pixels."""
        codec = self.autoencoder
        shape = (codec.latent_channels, *(side // codec.downsampling for side in images.shape[-2:]))
        noise = normal(streams, shape).to(codec.device)
        latents = codec.encode((images * (masks < 0.5)).to(codec.device), noise).float().cpu()
        small = F.interpolate(masks, size=latents.shape[-2:], mode="nearest")
        return Conditioning(concat=torch.cat([small, latents], 1))

    def shown(self, indices: list[int], cond: Conditioning) -> list[Tensor]:
        images = self.data.images(indices)
        masks = self._masks(images, [generator(0, "preview", i) for i in indices])
        return [images * (masks < 0.5)]

    def _masks(self, images: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
        """B 1 H W, the first that each stream draws."""
        height, width = images.shape[-2:]
        return torch.stack([random_mask(height, width, g, self.whole_share) for g in streams])


class Mapped(Beside):
    """A map for each picture, made before training: depth, or the share of each class."""

    def __init__(self, data: PictureSet, seed: int, maps: Tensor, facts: dict[str, Any]) -> None:
        """maps: float32 N C h w, at the size of the network's input."""
        super().__init__(data, seed, {**facts, "maps": hashlib.sha256(maps.contiguous().numpy().tobytes()).hexdigest()})
        self.maps = maps

    def given(self, indices: list[int], flipped: Tensor, streams: Sequence[torch.Generator]) -> Conditioning:
        maps = self.maps[torch.tensor(indices)]
        return Conditioning(concat=torch.where(flipped.view(-1, 1, 1, 1), maps.flip(-1), maps))

    def shown(self, indices: list[int], cond: Conditioning) -> list[Tensor]:
        assert cond.concat is not None
        if cond.concat.shape[1] == 1:
            grey = cond.concat
        else:  # the classes from black to white
            classes = cond.concat.shape[1]
            grey = (cond.concat.argmax(1, keepdim=True) * (2 / (classes - 1)) - 1).float()
        size = self.data.pictures.shape[-2:]
        return [F.interpolate(grey, size, mode="nearest").expand(-1, 3, -1, -1), self.data.images(indices)]


class LowResolution(Beside):
    """The picture at a low resolution, noised: the label says to which level (Ho et al. 2022, section 4.2; the x4
    upscaler of Stable Diffusion 2)."""

    def __init__(
        self, data: PictureSet, seed: int, size: int, grid: int, schedule: NoiseSchedule, largest: int
    ) -> None:
        """size: of the small picture, a divisor of the data's; grid: of the network's input, to which it is stretched;
        largest: the last timestep of `schedule` that it may be noised to."""
        super().__init__(data, seed, {"kind": "low_resolution", "size": size, "largest_level": largest})
        self.size = size
        self.grid = grid
        self.schedule = schedule
        self.largest = largest

    def given(self, indices: list[int], flipped: Tensor, streams: Sequence[torch.Generator]) -> Conditioning:
        small = self.small(indices, flipped)
        levels = torch.stack([torch.randint(self.largest + 1, (), generator=g) for g in streams])
        return noised_picture(small, levels, normal(streams, small.shape[1:]), self.schedule, (self.grid, self.grid))

    def small(self, indices: Sequence[int], flipped: Tensor | None = None) -> Tensor:
        """float32 B 3 s s in [-1, 1]: means over areas."""
        return F.adaptive_avg_pool2d(self.data.images(indices, flipped), self.size)

    def shown(self, indices: list[int], cond: Conditioning) -> list[Tensor]:
        size = self.data.pictures.shape[-2:]
        return [F.interpolate(self.small(indices), size, mode="nearest"), self.data.images(indices)]

    def examples(self, count: int) -> Examples:
        """As everywhere, but hardly noised: level 20, the upscaler's usual one, or the largest if that is less."""
        indices = torch.linspace(0, len(self.data) - 1, count).long().tolist()
        small = self.small(indices)
        noise = normal([generator(0, "preview", i) for i in indices], small.shape[1:])
        level = torch.full((count,), min(20, self.largest))
        cond = noised_picture(small, level, noise, self.schedule, (self.grid, self.grid))
        return Examples(indices, cond, self.shown(indices, cond))
