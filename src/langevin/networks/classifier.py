"""A small convolutional classifier, whose last hidden layer serves as features where pictures are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.blocks import check_counts

_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What shapes the classifier."""

    size: int = 28
    """Height and width of the pictures."""
    in_channels: int = 3
    """Channels of the pictures."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels at each level, each at half the resolution of the one before; multiples of 8."""
    blocks: int = 1
    """Residual blocks a level."""
    features: int = 64
    """Width of the last hidden layer."""
    classes: int = 10
    """Number of classes."""

    def __post_init__(self) -> None:
        check_counts(self, size=1, in_channels=1, blocks=1, features=1, classes=2)
        if not self.widths or any(w < 1 or w % _GROUPS for w in self.widths):
            raise ValueError(f"widths {list(self.widths)}: at least one, each a positive multiple of {_GROUPS}")
        if self.size >> (len(self.widths) - 1) < 1:
            raise ValueError(f"size {self.size} cannot be halved {len(self.widths) - 1} times: give fewer widths")


class Classified(NamedTuple):
    """What the classifier says of a batch of pictures."""

    features: Tensor
    """B D: the last hidden layer."""
    logits: Tensor
    """B K."""


class Block(nn.Module):
    """Two 3x3 convolutions around a skip connection, each after GroupNorm and SiLU (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W, returns the same."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return out


class Classifier(nn.Module):
    """Residual blocks at falling resolution, a mean over the places, one hidden layer, the logits."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        first, *others = config.widths
        # Half of the resolution at once: what is to be told apart is larger than a pixel.
        self.stem = nn.Conv2d(config.in_channels, first, 5, stride=2, padding=2)
        levels: list[nn.Module] = [Block(first) for _ in range(config.blocks)]
        before = first
        for width in others:
            levels.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            levels += [Block(width) for _ in range(config.blocks)]
            before = width
        self.levels = nn.Sequential(*levels)
        self.norm = nn.GroupNorm(_GROUPS, before)
        self.hidden = nn.Linear(before, config.features)
        self.head = nn.Linear(config.features, config.classes)

    def forward(self, images: Tensor) -> Classified:
        """images: B C S S in [-1, 1] with S = config.size. ValueError for any other shape."""
        expected = (self.config.in_channels, self.config.size, self.config.size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"pictures of shape {tuple(images.shape[1:])}: this classifier takes {expected}")
        h = F.silu(self.norm(self.levels(self.stem(images))))  # B C h w
        features = F.silu(self.hidden(h.mean((2, 3))))  # B D
        return Classified(features, self.head(features))
