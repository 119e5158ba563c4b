"""The learned perceptual distance LPIPS (Zhang et al. 2018) on the features of VGG-16 (Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's convolutions, block by block; the size halves between the blocks."""

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
"""Of pixels in [-1, 1], channel by channel, before they go into the network."""


class Vgg16(nn.Module):
    """The convolutional part, its tensors named as torchvision does: `features.0.weight` ..."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        """After which layer each block's features are taken: behind its last ReLU."""
        before = 3
        for block in WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in block:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: B 3 H W, H and W at least 16, normalised. Returns five maps B C h w, each half the size of the last."""
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found


class Lpips(nn.Module):
    """The distance of two pictures: at each place of each map the squared difference of the unit feature vectors,
    weighted by channel, its mean over the places, summed over the maps (equation 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Vgg16()
        self.heads = nn.ParameterList([nn.Parameter(torch.rand(1, block[-1], 1, 1)) for block in WIDTHS])
        """The weight of each channel, not negative: 1x1 convolutions to one channel."""
        self.register_buffer("shift", torch.tensor(_SHIFT).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(-1, 1, 1), persistent=False)

    shift: Tensor
    scale: Tensor

    def maps(self, images: Tensor) -> list[Tensor]:
        """images: B 3 H W in [-1, 1]. Returns five maps of unit vectors, float32 B C h w."""
        return [unit(found) for found in self.net((images - self.shift) / self.scale)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: B 3 H W in [-1, 1]. Returns float32 [B], 0 for equal pictures."""
        parts = zip(self.maps(a), self.maps(b), self.heads, strict=True)
        return torch.stack([((x - y).square() * head.float()).sum(1).mean((1, 2)) for x, y, head in parts]).sum(0)


def unit(features: Tensor, dim: int = 1) -> Tensor:
    """The vectors along `dim` brought to length 1, float32; those of length 0 stay, and their gradient is finite."""
    return F.normalize(features.float(), dim=dim, eps=1e-10)


def mean_distance(a: Sequence[Tensor], b: Sequence[Tensor], dim: int) -> Tensor:
    """[B]: squared distance of the unit vectors along `dim`, mean over the places, mean over the maps."""
    parts = zip(a, b, strict=True)
    return torch.stack([(unit(x, dim) - unit(y, dim)).square().sum(dim).flatten(1).mean(1) for x, y in parts]).mean(0)
