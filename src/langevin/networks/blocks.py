"""Convolutional building blocks of the U-Net, named as in the latent-diffusion weight files."""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.convolution import Conv3x3

GROUPS = 32
"""Groups of every GroupNorm here, and in the autoencoder unless it is told otherwise: channel numbers are multiples of
it."""

M = TypeVar("M", bound=nn.Module)


def check_counts(config: object, **least: int) -> None:
    """ValueError where a field of `config` is below its least value."""
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ValueError(f"{name} {value}: must be at least {low}")


def zero_init(module: M) -> M:
    """Set all parameters to zero, so that a residual branch begins as nothing (Goyal et al. 2017, section 5.1)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """Two convolutions with the time embedding between them, around a skip connection."""

    def __init__(
        self, channels: int, out_channels: int, emb_channels: int, *, dropout: float, scale_shift_norm: bool
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels, eps=1e-5),
            nn.SiLU(),
            Conv3x3(channels, out_channels),
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(),
            nn.Linear(emb_channels, 2 * out_channels if scale_shift_norm else out_channels),
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels, eps=1e-5),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(Conv3x3(out_channels, out_channels)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: B C H W; emb: B E. Returns B C' H W."""
        h = self.in_layers(x)  # B C' H W
        emb = self.emb_layers(emb)[:, :, None, None]  # B C' 1 1, or B 2C' 1 1
        if self.scale_shift_norm:  # Nichol & Dhariwal 2021, appendix A
            scale, shift = emb.chunk(2, 1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


class Downsample(nn.Module):
    """Halve height and width, rounding up: a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B C ceil(H/2) ceil(W/2)."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x: B C H W. `size`: height and width to reach, 2H and 2W if not given."""
        size = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out
