"""The transformer that lets the pixels of a feature map look at each other and at the text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.attention import CrossAttention
from langevin.networks.blocks import GROUPS, zero_init


class GEGLU(nn.Module):
    """A linear layer gated by the exact (erf) GELU of another (Shazeer 2020)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: B N C. Returns B N C'."""
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The position-wise network, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Place 1 is the dropout of the original code; keeping it keeps the name `net.2`.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: B N C, returns the same."""
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each as a residual after a LayerNorm.

    With `cross_only` the first attention goes to the context too (x4 upscaler).
    """

    def __init__(
        self, channels: int, context_channels: int, heads: int, *, cross_only: bool = False, upcast: bool = False
    ) -> None:
        super().__init__()
        self.cross_only = cross_only
        self.attn1 = CrossAttention(channels, context_channels if cross_only else None, heads, upcast=upcast)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_channels, heads, upcast=upcast)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: B N C; context: B L D. Returns B N C."""
        x = x + self.attn1(self.norm1(x), context if self.cross_only else None)
        x = x + self.attn2(self.norm2(x), context)
        x = x + self.ff(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """A feature map as a sequence of pixels through transformer blocks, added to itself (Rombach et al. 2022).

    `linear`: the projections before and after are linear layers (Stable Diffusion 2), else 1x1 convolutions
    (Stable Diffusion 1): the same mathematics, weights of another shape.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        *,
        depth: int = 1,
        linear: bool = False,
        cross_only: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_channels, heads, cross_only=cross_only, upcast=upcast)
            for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: B C H W; context: B L D. Returns B C H W."""
        size = x.shape[-2:]
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # B N C
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)  # B N C
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear:
            h = self.proj_out(h).transpose(1, 2).unflatten(2, size)  # B C H W
        else:
            h = self.proj_out(h.transpose(1, 2).unflatten(2, size))  # B C H W
        return x + h
