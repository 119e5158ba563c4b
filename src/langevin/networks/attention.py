"""Attention: the one call of torch's kernel, and the two attention layers of the U-Net."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.blocks import GROUPS, zero_init

_SCORES_KEPT = 2**17
"""Up to this many pairs of query and key, the scores of one head are kept for the backward pass."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, upcast: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, the only attention kernel of the package.

    q: B heads N d; k, v: B heads M d. Returns B heads N d in q's dtype. `causal`: position n sees positions <= n.
    `upcast`: compute in float32 whatever the inputs are. Stable Diffusion 2.1 at 768 pixels needs it in float16.
    """
    if upcast:
        device = q.device.type
        # The meta device, on which memory is estimated, has no autocast.
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return _kernel(q.float(), k.float(), v.float(), causal).to(v.dtype)
    return _kernel(q, k, v, causal)


def _kernel(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    if not _is_learned_briefly(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # B h N M
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


def _is_learned_briefly(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there is a backward pass that torch's kernel would be slow in: on a CPU, with few queries and keys.

    Forward and backward in bfloat16, with 64 queries and 77 keys it takes five times as long as plain products of
    matrices, its own plain form (`SDPBackend.MATH`, in float32 inside) two to three times as long; in float32 it
    takes 1.3 times as long. With 256 and 256 it is 1.5 to 2.4 and 0.8 times, with 1024 and 1024 it is the faster in
    both, and it does not keep the scores. Processor time on an Intel Xeon with AMX, torch 2.13.
    """
    return (
        q.device.type == "cpu"
        and torch.is_grad_enabled()
        and (q.requires_grad or k.requires_grad or v.requires_grad)
        and q.shape[-2] * k.shape[-2] <= _SCORES_KEPT
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """B N (heads d) -> B heads N d, a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """B heads N d -> B N (heads d)."""
    return x.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Multi-head attention from a sequence to a context, or to itself when there is none."""

    def __init__(self, channels: int, context_channels: int | None, heads: int, *, upcast: bool = False) -> None:
        super().__init__()
        context_channels = channels if context_channels is None else context_channels
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: B N C; context: B L D or None for self-attention. Returns B N C."""
        context = x if context is None else context
        q = split_heads(self.to_q(x), self.heads)  # B h N d
        k = split_heads(self.to_k(context), self.heads)  # B h L d
        v = split_heads(self.to_v(context), self.heads)  # B h L d
        out: Tensor = self.to_out(merge_heads(attend(q, k, v, upcast=self.upcast)))
        return out


class AttentionBlock(nn.Module):
    """Residual self-attention over the pixels, without context: the pixel-space U-Nets.

    Names and layout are those of improved DDPM (Nichol & Dhariwal 2021): the rows of `qkv` are, head by head, that
    head's queries, keys and values.
    """

    def __init__(self, channels: int, heads: int, *, upcast: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.upcast = upcast
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W, returns the same."""
        qkv = self.qkv(self.norm(x).flatten(2))  # B 3C N
        q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).transpose(-1, -2).unbind(2)  # B h N d
        out = attend(q, k, v, upcast=self.upcast).transpose(-1, -2).flatten(1, 2)  # B C N
        return x + self.proj_out(out).view(x.shape)
