"""Feature vectors of pictures, for the distances between sets of pictures; and the CLIP score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.checkpoints.clip_files import OPENAI_DEVIATION, OPENAI_MEAN, ClipModel
from langevin.errors import DataError
from langevin.networks.classifier import Classifier
from langevin.networks.clip import ClipImage
from langevin.networks.inception import Inception

__all__ = [
    "OPENAI_DEVIATION",
    "OPENAI_MEAN",
    "ClassifierFeatures",
    "Classifying",
    "ClipFeatures",
    "Extractor",
    "InceptionFeatures",
    "Views",
    "clip_score",
    "embed_texts",
    "extract",
    "views",
]


class Views(NamedTuple):
    """What an extractor sees in a set of pictures."""

    features: Tensor
    """float32 [N, D]."""
    probabilities: Tensor | None
    """float32 [N, K], of classes, each row summing to 1; None where the network knows no classes."""


class Extractor(Protocol):
    """A network that turns pictures into vectors."""

    @property
    def name(self) -> str:
        """Stands beside every figure: figures of different extractors cannot be compared."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """B C H W in [-1, 1] -> B D, float32."""
        ...


@runtime_checkable
class Classifying(Protocol):
    """An extractor that knows classes."""

    def views(self, images: Tensor) -> Views:
        """Features and class probabilities of one batch, in one run of the network."""
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

    @classmethod
    def of(cls, clip: ClipModel) -> ClipFeatures:
        """The image tower of a loaded CLIP, with its own normalisation."""
        return cls(clip.image, clip.name, mean=clip.config.mean, deviation=clip.config.deviation)

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


class InceptionFeatures:
    """The 2048 features of the Frechet distance's own network, with its 1008 classes: Frechet distances of these are
    the FID (Heusel et al. 2017), their Inception score the published one (Salimans et al. 2016)."""

    def __init__(self, network: Inception, name: str) -> None:
        self.network = network
        self.name = name

    def __call__(self, images: Tensor) -> Tensor:
        """images: B 3 H W in [-1, 1], stretched to 299 x 299. Returns B 2048."""
        return self.views(images).features

    @torch.no_grad()
    def views(self, images: Tensor) -> Views:
        """images: B 3 H W in [-1, 1]."""
        weight = self.network.fc.weight
        seen = self.network(images.to(weight.device, torch.float32))
        return Views(seen.features, seen.logits.softmax(1))


class ClassifierFeatures:
    """The last hidden layer of a classifier that was trained on a data set, with its classes. Figures of it compare
    models of that data set with one another; they are no FID."""

    def __init__(self, network: Classifier, name: str) -> None:
        self.network = network
        self.name = name

    def __call__(self, images: Tensor) -> Tensor:
        """images: as `views` takes them. Returns B D."""
        return self.views(images).features

    @torch.no_grad()
    def views(self, images: Tensor) -> Views:
        """images: B C S S in [-1, 1] of the very size that the classifier was trained on; else DataError."""
        config = self.network.config
        expected = (config.in_channels, config.size, config.size)
        if tuple(images.shape[1:]) != expected:
            raise DataError(
                f"{self.name} takes pictures of {config.size} x {config.size} pixels in {config.in_channels} channels, "
                f"got {tuple(images.shape[1:])}: give a classifier that was trained at this size, or --size"
            )
        weight = self.network.head.weight
        found = self.network(images.to(weight.device, torch.float32))
        return Views(found.features, found.logits.softmax(1))


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Vectors of all batches, [N, D] float32 on the CPU. Only one batch of pictures is held at a time.

    Raises DataError where there are no pictures.
    """
    found = [extractor(batch).to("cpu", torch.float32) for batch in batches]
    if not found:
        raise DataError("there are no pictures to measure; give at least one batch")
    return torch.cat(found)


def views(extractor: Extractor, batches: Iterable[Tensor]) -> Views:
    """`extract`, with the class probabilities where the extractor has them. Raises DataError as that does."""
    if not isinstance(extractor, Classifying):
        return Views(extract(extractor, batches), None)
    found = [extractor.views(batch) for batch in batches]
    if not found:
        raise DataError("there are no pictures to measure; give at least one batch")
    chances = [v.probabilities.to("cpu", torch.float32) for v in found if v.probabilities is not None]
    return Views(torch.cat([v.features.to("cpu", torch.float32) for v in found]), torch.cat(chances))


@torch.no_grad()
def embed_texts(clip: ClipModel, texts: Sequence[str], batch: int = 256) -> Tensor:
    """The text tower's vector of each text, taken literally and cut at the tower's length: float32 [N, D]."""
    device = next(clip.text.parameters()).device
    lines = [clip.tokenizer.padded(clip.tokenizer.encode(text)) for text in texts]
    parts = torch.tensor(lines, dtype=torch.int64).split(batch)
    return torch.cat([clip.text(part.to(device)).pooled.float().cpu() for part in parts])


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """`100 max(cosine, 0)` of each picture with its text, float64 [B] (Hessel et al. 2021, equation 1, with w = 100).

    images, texts: B D, vectors of one CLIP's two towers. Random pairs do not give 0: state their score too. Raises
    DataError where the shapes differ.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise DataError(f"vectors of equal shape B D are needed, got {tuple(images.shape)} and {tuple(texts.shape)}")
    return 100 * F.cosine_similarity(images.to(torch.float64), texts.to(torch.float64)).clamp(min=0)
