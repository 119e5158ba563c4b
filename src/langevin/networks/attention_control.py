"""Attention control: a network whose attention follows that of one picture of the batch (Hertz et al. 2023).

`controlled` gives a copy of a network that shares its weights. The copy keeps no state between calls: what it replays
is in the same batch. So any number of threads may run copies and original at once, and neither knows of the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from langevin.networks.attention import CrossAttention, attend, merge_heads, split_heads
from langevin.networks.transformer import TransformerBlock

N = TypeVar("N", bound=nn.Module)

LARGEST_SELF = 256
"""Pixels of the largest feature map whose self-attention is replayed: 16 x 16, as in the authors' program. Finer ones
would bring the source's texture along with its layout."""


@dataclass(frozen=True, eq=False)
class TokenMap:
    """How the tokens of one text follow those of another: the three edits of Hertz et al. 2023, section 3.2, in one."""

    source: Tensor
    """[L, L'], float32: the attention that target token j takes over is `source_attention @ source[:, j]`."""
    share: Tensor
    """[L'] in [0, 1]: how much of a target token's attention is taken over; the rest is its own."""
    weight: Tensor
    """[L']: what each target token's attention is multiplied with (attention re-weighting); 1 changes nothing."""

    def idle(self) -> TokenMap:
        """One by which nothing follows."""
        return TokenMap(self.source, torch.zeros_like(self.share), torch.ones_like(self.weight))


_WATCHING: ContextVar[list[Tensor] | None] = ContextVar("_WATCHING", default=None)


@contextmanager
def watched() -> Iterator[list[Tensor]]:
    """Collects, of each call inside, the maps that controlled layers attend to the text by: B N L, the mean over the
    heads, layer after layer. Only of calls in this thread."""
    maps: list[Tensor] = []
    before = _WATCHING.set(maps)
    try:
        yield maps
    finally:
        _WATCHING.reset(before)


class ControlledAttention(nn.Module):
    """An attention layer in which image 0 of the batch is the source, and the others follow it.

    To a context, by the map of tokens; without one, their attention between pixels becomes the source's. The weights
    are the other layer's.
    """

    def __init__(self, layer: CrossAttention, tokens: TokenMap | None, largest: int) -> None:
        """tokens: None for self-attention. largest: pixels up to which self-attention is replayed."""
        super().__init__()
        self.heads, self.upcast = layer.heads, layer.upcast
        self.to_q, self.to_k, self.to_v, self.to_out = layer.to_q, layer.to_k, layer.to_v, layer.to_out
        self.tokens = tokens
        self.largest = largest

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: B N C; context: B L D or None for self-attention. Returns B N C."""
        context = x if context is None else context
        q = split_heads(self.to_q(x), self.heads)  # B h N d
        k = split_heads(self.to_k(context), self.heads)  # B h L d
        v = split_heads(self.to_v(context), self.heads)  # B h L d
        out: Tensor = self.to_out(merge_heads(self._attend(q, k, v)))
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.tokens is not None:
            maps = followed(attention_map(q, k, upcast=self.upcast), self.tokens)
            if (watching := _WATCHING.get()) is not None:
                watching.append(maps.mean(1))
            return maps.to(v.dtype) @ v
        if q.shape[2] > self.largest:
            return attend(q, k, v, upcast=self.upcast)
        source = slice(0, 1)
        # The source's queries and keys against everybody's values: its map, without ever holding it.
        q, k = (t[source].expand(len(v), *t.shape[1:]) for t in (q, k))
        return attend(q, k, v, upcast=self.upcast)


def attention_map(q: Tensor, k: Tensor, *, upcast: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)): q is B h N d, k is B h L d; returns B h N L, float32 at least.

    `langevin.networks.attention.attend` never holds it; here it is what is changed.
    """
    if upcast:
        q, k = q.float(), k.float()
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def followed(maps: Tensor, tokens: TokenMap) -> Tensor:
    """Maps B h N L in which those of images 1 ... B - 1 follow image 0's, the source's, which stays as it is."""
    source, own = maps[:1], maps[1:]
    share, weight = tokens.share.to(maps), tokens.weight.to(maps)
    taken = source @ tokens.source.to(maps)  # 1 h N L'
    return torch.cat([source, weight * torch.lerp(own, taken.expand_as(own), share)])


def controlled(network: N, *, cross: TokenMap | None = None, pixels: bool = False, largest: int = LARGEST_SELF) -> N:
    """A copy of a U-Net, weights shared, whose attention follows image 0 of each batch that it is called with.

    cross: attention to the text follows by this map; None leaves it alone. pixels: self-attention follows too, in
    feature maps of at most `largest` pixels. With neither it computes what the network does.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, memo)
    for block in twin.modules():
        if isinstance(block, TransformerBlock):
            if cross is not None:
                _replace(block, "attn2", cross, largest)
            if block.cross_only:  # its first attention is to the text too
                if cross is not None:
                    _replace(block, "attn1", cross, largest)
            elif pixels:
                _replace(block, "attn1", None, largest)
    return twin


def _replace(block: TransformerBlock, name: str, tokens: TokenMap | None, largest: int) -> None:
    layer = getattr(block, name)
    assert isinstance(layer, CrossAttention)
    setattr(block, name, ControlledAttention(layer, tokens, largest))
