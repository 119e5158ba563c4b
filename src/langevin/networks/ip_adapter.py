"""IP-Adapter: a picture as a prompt, by a second attention beside that to the text (Ye et al. 2023).

The parts are named as in the original files. `decoupled` gives a copy of a U-Net that shares its weights and is told
the picture by tokens after those of the text; the U-Net itself knows nothing of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never, cast

import torch
from torch import Tensor, nn

from langevin.networks.attention import CrossAttention, attend, merge_heads, split_heads
from langevin.networks.blocks import check_counts
from langevin.networks.transformer import TransformerBlock
from langevin.networks.unet import UNet

Kind = Literal["linear", "plus", "full"]

HEAD_CHANNELS = 64
"""Of the resampler's attention heads, in every published file."""


@dataclass(frozen=True, kw_only=True)
class IPAdapterConfig:
    """Everything that shapes an IP-Adapter. The defaults are those of the first one for Stable Diffusion 1.x, without
    its layers."""

    kind: Kind = "linear"
    """How tokens are made: `linear` of the picture's one vector; `plus` by a resampler (Alayrac et al. 2022) and `full`
    by a small network, of the states of all its patches."""
    image_channels: int = 1024
    """Width of what the image encoder gives: its projected vector, or its states."""
    context_channels: int = 768
    """Width of the tokens: that of the text states."""
    tokens: int = 4
    """How many tokens a picture becomes. `full`: as many as it has states, and this is not looked at."""
    width: int = 768
    """`plus`: channels inside the resampler."""
    depth: int = 4
    """`plus`: its blocks."""
    heads: int = 12
    """`plus`: its attention heads, of 64 channels."""
    layers: tuple[int, ...] = ()
    """Channels of each of the U-Net's attention layers to the text: those of the way down, of the way up, and of the
    middle, in this order, which is that of the files."""

    def __post_init__(self) -> None:
        check_counts(self, image_channels=1, context_channels=1, tokens=1, width=1, depth=1, heads=1)
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"layers {self.layers}: must be numbers of channels, one for each layer of attention")


class LinearProjection(nn.Module):
    """One linear layer from the picture's vector to all tokens."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.image_channels, config.tokens * config.context_channels)
        self.norm = nn.LayerNorm(config.context_channels)

    def forward(self, image: Tensor) -> Tensor:
        """image: B D. Returns B N C."""
        out: Tensor = self.norm(self.proj(image).unflatten(1, (-1, self.norm.normalized_shape[0])))
        return out


class FullProjection(nn.Module):
    """Two linear layers from each of the picture's states to a token."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(config.image_channels, config.image_channels),
            nn.GELU(),
            nn.Linear(config.image_channels, config.context_channels),
            nn.LayerNorm(config.context_channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        """image: B N D. Returns B N C."""
        out: Tensor = self.proj(image)
        return out


class PerceiverAttention(nn.Module):
    """Attention from a few latents to the picture's states and to themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD_CHANNELS, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * HEAD_CHANNELS, bias=False)
        self.to_out = nn.Linear(heads * HEAD_CHANNELS, width, bias=False)

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        """states: B M W; latents: B N W. Returns B N W."""
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(states), latents], 1)).chunk(2, -1)
        q, k, v = (split_heads(x, self.heads) for x in (self.to_q(latents), k, v))  # B h N d
        out: Tensor = self.to_out(merge_heads(attend(q, k, v)))
        return out


class Resampler(nn.Module):
    """Learned latents that look at the picture's states, block after block, and become the tokens."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width = config.width
        self.latents = nn.Parameter(width**-0.5 * torch.randn(1, config.tokens, width))
        self.proj_in = nn.Linear(config.image_channels, width)
        self.proj_out = nn.Linear(width, config.context_channels)
        self.norm_out = nn.LayerNorm(config.context_channels)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, config.heads), _feed_forward(width)]) for _ in range(config.depth)
        )

    def forward(self, image: Tensor) -> Tensor:
        """image: B M D. Returns B N C."""
        states = self.proj_in(image)  # B M W
        latents = self.latents.expand(len(image), -1, -1)  # B N W
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = latents + attention(states, latents)
            latents = latents + feed_forward(latents)
        out: Tensor = self.norm_out(self.proj_out(latents))
        return out


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


class ImageLayer(nn.Module):
    """Keys and values of the picture's tokens for one layer of attention."""

    def __init__(self, context_channels: int, channels: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_channels, channels, bias=False)
        self.to_v_ip = nn.Linear(context_channels, channels, bias=False)


class IPAdapter(nn.Module):
    """What makes tokens of a picture, and the layers by which a U-Net attends to them."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = _projection(config)
        # The files count the layers of self-attention too, which have no weights there.
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): ImageLayer(config.context_channels, channels) for i, channels in enumerate(config.layers)}
        )

    @property
    def layers(self) -> list[ImageLayer]:
        return [cast(ImageLayer, layer) for layer in self.ip_adapter.values()]

    def forward(self, image: Tensor) -> Tensor:
        """The picture's tokens, B N C. image: B D for the kind `linear`, else B M D."""
        out: Tensor = self.image_proj(image)
        return out


def _projection(config: IPAdapterConfig) -> nn.Module:
    match config.kind:
        case "linear":
            return LinearProjection(config)
        case "plus":
            return Resampler(config)
        case "full":
            return FullProjection(config)
        case _:
            assert_never(config.kind)


class Beside(NamedTuple):
    """An adapter as it acts in a U-Net."""

    adapter: IPAdapter
    strength: float
    """What its attention is multiplied with: 1 as it was trained."""
    tokens: int
    """How many it is told of."""


class DecoupledAttention(nn.Module):
    """Attention to the text, and beside it to the tokens of each picture, with the same queries (equation 5).

    The weights are the other layer's. The tokens come after those of the text, first those of the first picture.
    """

    def __init__(self, layer: CrossAttention, images: Sequence[ImageLayer], beside: Sequence[Beside]) -> None:
        super().__init__()
        self.heads, self.upcast = layer.heads, layer.upcast
        self.to_q, self.to_k, self.to_v, self.to_out = layer.to_q, layer.to_k, layer.to_v, layer.to_out
        self.images = nn.ModuleList(images)
        self.strengths = [one.strength for one in beside]
        self.counts = [one.tokens for one in beside]

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: B N C; context: B L+M D, the last M of them the pictures' tokens. Returns B N C."""
        text, *images = context.split([context.shape[1] - sum(self.counts), *self.counts], 1)
        q = split_heads(self.to_q(x), self.heads)  # B h N d
        out = self._attend(q, self.to_k(text), self.to_v(text))
        for tokens, module, strength in zip(images, self.images, self.strengths, strict=True):
            layer = cast(ImageLayer, module)
            out = out + strength * self._attend(q, layer.to_k_ip(tokens), layer.to_v_ip(tokens))
        found: Tensor = self.to_out(merge_heads(out))
        return found

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, split_heads(k, self.heads), split_heads(v, self.heads), upcast=self.upcast)


def decoupled(network: UNet, beside: Sequence[Beside]) -> UNet:
    """A copy of a U-Net, weights shared, that attends to pictures too: its context ends with their tokens.

    ValueError where an adapter has another number of layers than the U-Net, or layers of another width.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, memo)
    blocks = list(_blocks(twin))
    widths = attention_widths(network)
    for one in beside:
        if one.adapter.config.layers != widths:
            raise ValueError(f"layers {one.adapter.config.layers}: this network has {widths}")
    for block, *layers in zip(blocks, *(one.adapter.layers for one in beside), strict=True):
        assert isinstance(block.attn2, CrossAttention)
        block.attn2 = DecoupledAttention(block.attn2, layers, beside)
    return twin


def attention_widths(network: UNet) -> tuple[int, ...]:
    """Channels of each layer of attention to the text, in the order of `IPAdapterConfig.layers`."""
    return tuple(block.attn2.to_q.out_features for block in _blocks(network))


def _blocks(network: UNet) -> Iterator[TransformerBlock]:
    for part in (network.input_blocks, network.output_blocks, network.middle_block):
        for module in part.modules():
            if isinstance(module, TransformerBlock):
                yield module
