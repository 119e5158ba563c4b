"""Feature vectors of pictures, for the distances between sets of pictures; and the CLIP score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError
from langevin.networks.clip import ClipImage

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels from 0 to 1 that OpenAI's and OpenCLIP's towers were trained on."""


class Extractor(Protocol):
    """A network that turns pictures into vectors."""

    @property
    def name(self) -> str:
        """Stands beside every figure: figures of different extractors cannot be compared."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """B C H W in [-1, 1] -> B D, float32."""
        ...


class ClipFeatures:
    """The vectors of a CLIP image tower, projected where it has a projection; not normalised in length."""

    def __init__(
        self,
        tower: ClipImage,
        name: str,
        *,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        deviation: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        """mean, deviation: of each channel from 0 to 1, as the tower was trained. The defaults leave [-1, 1] as it is,
        which is what the towers trained here take; the published ones take OPENAI_MEAN and OPENAI_DEVIATION.

        Raises DataError where they do not fit the tower's channels.
        """
        channels = tower.config.in_channels
        if not len(mean) == len(deviation) == channels or min(deviation) <= 0:
            raise DataError(f"mean and deviation need {channels} values each, deviations above 0: one for each channel")
        self.tower = tower
        self.name = name
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._deviation = torch.tensor(deviation).view(-1, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Square pictures of another size are brought to the tower's by antialiased bicubic interpolation.

        images: B C S S in [-1, 1]. Raises DataError where they are not square: how to crop is the caller's choice.
        """
        channels, size = self.tower.config.in_channels, self.tower.config.image_size
        if images.ndim != 4 or images.shape[1] != channels or images.shape[2] != images.shape[3]:
            raise DataError(f"{self.name} takes square pictures B {channels} S S, got {tuple(images.shape)}; crop them")
        weight = next(self.tower.parameters())
        pixels = images.to(weight.device, torch.float32)
        if pixels.shape[-1] != size:
            # The interpolation overshoots at edges, where stored pixels would be clipped.
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        normal = ((pixels + 1) / 2 - self._mean.to(pixels)) / self._deviation.to(pixels)
        vectors: Tensor = self.tower(normal.to(weight.dtype))
        return vectors.to(torch.float32)


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Vectors of all batches, [N, D] float32 on the CPU. Only one batch of pictures is held at a time.

    Raises DataError where there are no pictures.
    """
    found = [extractor(batch).to("cpu", torch.float32) for batch in batches]
    if not found:
        raise DataError("there are no pictures to measure; give at least one batch")
    return torch.cat(found)


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """`100 max(cosine, 0)` of each picture with its text, float64 [B] (Hessel et al. 2021, equation 1, with w = 100).

    images, texts: B D, vectors of one CLIP's two towers. Random pairs do not give 0: state their score too. Raises
    DataError where the shapes differ.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise DataError(f"vectors of equal shape B D are needed, got {tuple(images.shape)} and {tuple(texts.shape)}")
    return 100 * F.cosine_similarity(images.to(torch.float64), texts.to(torch.float64)).clamp(min=0)
