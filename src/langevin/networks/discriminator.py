"""The patch discriminator of adversarially trained autoencoders (Isola et al. 2017; Esser et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from langevin.networks.blocks import check_counts

_SLOPE = 0.2
_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """What shapes the discriminator."""

    in_channels: int = 3
    """Channels of the picture."""
    base_channels: int = 64
    """Channels of the first layer, a multiple of 8; they double from layer to layer up to eight times as many."""
    layers: int = 3
    """Halvings of the resolution. Each output sees a patch of 16, 34, 70, 142 pixels for 1, 2, 3, 4 of them."""

    def __post_init__(self) -> None:
        check_counts(self, in_channels=1, base_channels=1, layers=1)
        if self.base_channels % _GROUPS:
            raise ValueError(f"base_channels {self.base_channels}: must be a multiple of {_GROUPS}")

    @property
    def least_size(self) -> int:
        """Height and width of the smallest picture that gives an output: each of the two last layers takes a pixel."""
        return 3 * 2**self.layers


class PatchDiscriminator(nn.Module):
    """How real each patch of a picture looks: one number for each place, without bound.

    The papers normalise over the batch; here each picture is normalised by itself (GroupNorm), so that what is said
    of a picture does not depend on the others of its batch.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base_channels
        modules: list[nn.Module] = [nn.Conv2d(config.in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for layer in range(1, config.layers + 1):
            before, width = width, config.base_channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1
            modules += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, width),
                nn.LeakyReLU(_SLOPE),
            ]
        modules.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*modules)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """images: B C H W in [-1, 1], H and W at least `config.least_size` (ValueError otherwise). Returns B 1 h w."""
        if min(images.shape[-2:]) < self.config.least_size:
            raise ValueError(
                f"pictures of {images.shape[-1]} x {images.shape[-2]}: a discriminator of {self.config.layers} layers "
                f"takes at least {self.config.least_size} pixels a side"
            )
        scores: Tensor = self.main(images)
        return scores
