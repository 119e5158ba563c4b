"""A generator and a discriminator of strided convolutions (Radford et al. 2016), for training with R1.

Nothing depends on the batch: pixel-wise normalisation (Karras et al. 2018, section 4.2) stands where that paper has
batch normalisation in the generator, and the discriminator has none, as in Mescheder et al. 2018, whose use of classes
is taken over too: the generator gets the label beside its noise, the discriminator has an output for each class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.blocks import check_counts


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """What shapes both networks."""

    size: int = 28
    """Height and width of the pictures: a multiple of `factor`."""
    channels: int = 1
    """Of a pixel: 1 (grey) or 3."""
    latent: int = 64
    """Gaussian numbers that a picture is made from."""
    width: int = 64
    """Channels at half the pictures' size."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Channels of each level as multiples of `width`, from half the pictures' size downwards."""
    num_classes: int | None = None
    """None: no labels are used."""

    def __post_init__(self) -> None:
        check_counts(self, size=1, latent=1, width=1, num_classes=1)
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: must be 1 or 3")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult {list(self.channel_mult)}: give at least one entry, each at least 1")
        if self.size % self.factor:
            raise ValueError(f"size {self.size}: must be a multiple of {self.factor}, 2 to the number of levels")

    @property
    def factor(self) -> int:
        return 2 ** len(self.channel_mult)


def pixel_norm(x: Tensor) -> Tensor:
    """Unit mean square over the channels of each pixel: B C H W."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Generator(nn.Module):
    """Noise to pictures."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * m for m in reversed(config.channel_mult)]
        self.side = config.size // config.factor
        if config.num_classes is not None:
            self.labels = nn.Embedding(config.num_classes, config.latent)
        inputs = config.latent * (1 if config.num_classes is None else 2)
        self.first = nn.Linear(inputs, widths[0] * self.side**2)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)
            for a, b in zip(widths, [*widths[1:], config.channels], strict=True)
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z: B latent; labels: int64 [B] if and only if there are classes. Returns B C S S in (-1, 1)."""
        if labels is not None:
            z = torch.cat([z, self.labels(labels)], 1)
        h = self.first(z).unflatten(1, (-1, self.side, self.side))
        for layer in self.grow:
            h = layer(F.leaky_relu(pixel_norm(h), 0.2))
        return torch.tanh(h)


class Discriminator(nn.Module):
    """Pictures to how real they look."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.channel_mult]
        self.shrink = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1)
            for a, b in zip([config.channels, *widths[:-1]], widths, strict=True)
        )
        self.last = nn.Linear(widths[-1] * (config.size // config.factor) ** 2, config.num_classes or 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """images: B C S S. Returns [B], the logit of being real (as one of that class)."""
        h = images
        for layer in self.shrink:
            h = F.leaky_relu(layer(h), 0.2)
        out: Tensor = self.last(h.flatten(1))
        return out[:, 0] if labels is None else out.gather(1, labels[:, None])[:, 0]


class Gan(nn.Module):
    """Both, so that one loop trains them."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
