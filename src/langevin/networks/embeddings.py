"""The embedding of the noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of geometrically falling frequency, cosines first: float32 [B, dim].

    t: [B], any real number, in units of the T = 1000 steps. dim: even. Ho et al. 2020 with the order of
    improved DDPM: [cos(t w_0), ..., sin(t w_0), ...] with w_i = 10000 ** (-i / (dim / 2)).
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies  # B dim/2
    return torch.cat([angles.cos(), angles.sin()], 1)


class TimeEmbed(nn.Sequential):
    """The sinusoids through two linear layers, in the network's dtype."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__(nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))
        self.channels = channels

    def forward(self, t: Tensor) -> Tensor:
        """t: [B]. Returns B E."""
        # The angles need float32: bfloat16 cannot tell t = 997 from 999.
        sinusoids = timestep_embedding(t, self.channels).to(next(self.parameters()).dtype)  # B C
        return super().forward(sinusoids)
