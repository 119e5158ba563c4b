"""The U-Net of pixel DDPM, improved DDPM and Stable Diffusion 1.x / 2.x, its parts named as in the original files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from langevin.networks.attention import AttentionBlock
from langevin.networks.blocks import GROUPS, Downsample, ResBlock, Upsample, check_counts, zero_init
from langevin.networks.embeddings import TimeEmbed
from langevin.networks.transformer import SpatialTransformer


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Everything that shapes the U-Net. The defaults are those of Stable Diffusion 1.x."""

    in_channels: int = 4
    """4 latent channels; 9 with mask and masked image (inpainting), 5 with depth, 7 with a low-resolution picture."""
    out_channels: int = 4
    """As many as the data has, or twice that when the network learns the variance too (improved DDPM)."""
    model_channels: int = 320
    """Channels of the first level: a multiple of 32."""
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, as multiples of `model_channels`; height and width halve from level to level."""
    num_res_blocks: int = 2
    """Residual blocks in each level on the way down; one more on the way up."""
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    """Which levels have attention after each residual block: one entry a level."""
    middle_attention: bool = True
    """Whether the middle block, at the lowest level, has attention."""
    num_heads: int | None = 8
    """Attention heads, the same number at every level. Set this or `head_channels`, the other None."""
    head_channels: int | None = None
    """Channels of a head, the same at every level."""
    context_channels: int | None = 768
    """Width of the text states. None: no context; attention is plain self-attention, as in pixel DDPM."""
    transformer_depth: int = 1
    """Transformer blocks in each attention place. Only with a context."""
    linear_projection: bool = False
    """Linear layers instead of 1x1 convolutions around the transformer blocks (Stable Diffusion 2)."""
    cross_attention_only_levels: tuple[bool, ...] = ()
    """Levels whose first attention goes to the context too instead of to the pixels (x4 upscaler). Empty: none."""
    num_classes: int | None = None
    """Number of class labels (or noise levels, x4 upscaler) with an embedding. None: no labels."""
    scale_shift_norm: bool = False
    """The time embedding scales and shifts the normalised features (improved DDPM) instead of being added."""
    dropout: float = 0.0
    """Dropout in the residual blocks, in training."""
    upcast_attention: bool = False
    """Attention in float32 whatever the network's dtype (Stable Diffusion 2.1 needs it in float16)."""

    def __post_init__(self) -> None:
        check_counts(
            self,
            in_channels=1,
            out_channels=1,
            model_channels=1,
            num_res_blocks=1,
            num_heads=1,
            head_channels=1,
            context_channels=1,
            transformer_depth=1,
            num_classes=1,
        )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: must be at least 0 and below 1")
        if (self.num_heads is None) == (self.head_channels is None):
            raise ValueError(
                f"num_heads {self.num_heads} and head_channels {self.head_channels}: set exactly one, the other None"
            )
        if not self.channel_mult:
            raise ValueError("channel_mult is empty: give one entry for each level")
        levels = len(self.channel_mult)
        for name in ("attention_levels", "cross_attention_only_levels"):
            value = getattr(self, name)
            if len(value) != levels and not (name == "cross_attention_only_levels" and len(value) == 0):
                raise ValueError(f"{name} has {len(value)} entries, channel_mult has {levels}: give one for each level")
        if self.context_channels is None and any(self.cross_attention_only_levels):
            raise ValueError("cross_attention_only_levels needs context_channels: there is no context to attend to")
        places = [*zip(self.channel_mult, self.attention_levels, strict=True)]
        for channels, attention in [(self.model_channels * m, a) for m, a in places]:
            if channels <= 0 or channels % GROUPS:
                raise ValueError(f"a level of {channels} channels: must be a multiple of {GROUPS}")
            if attention:
                self.heads(channels)
        if self.middle_attention:
            self.heads(self.model_channels * self.channel_mult[-1])

    def heads(self, channels: int) -> int:
        """How many attention heads a feature map of `channels` has. ValueError if they do not divide it."""
        if self.num_heads is not None:
            heads = self.num_heads
        else:
            assert self.head_channels is not None
            heads = channels // self.head_channels if channels % self.head_channels == 0 else 0
        if heads < 1 or channels % heads:
            raise ValueError(
                f"{channels} channels cannot be divided into heads "
                f"(num_heads {self.num_heads}, head_channels {self.head_channels})"
            )
        return heads

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    def cross_only(self, level: int) -> bool:
        return bool(self.cross_attention_only_levels) and self.cross_attention_only_levels[level]


class Stage(nn.Sequential):
    """Layers run one after the other, each given what it needs of embedding, context and size."""

    def forward(  # type: ignore[override]  # nn.Sequential takes one input
        self, h: Tensor, emb: Tensor, context: Tensor | None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """h: B C H W; emb: B E; context: B L D; `size`: what an upsampling layer is to reach."""
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            elif isinstance(layer, Upsample):
                h = layer(h, size)
            else:
                h = layer(h)
        return h


def make_res_block(config: UNetConfig, channels: int, out_channels: int) -> ResBlock:
    return ResBlock(
        channels,
        out_channels,
        config.emb_channels,
        dropout=config.dropout,
        scale_shift_norm=config.scale_shift_norm,
    )


def make_attention(config: UNetConfig, channels: int, *, cross_only: bool = False) -> nn.Module:
    heads = config.heads(channels)
    if config.context_channels is None:
        return AttentionBlock(channels, heads, upcast=config.upcast_attention)
    return SpatialTransformer(
        channels,
        config.context_channels,
        heads,
        depth=config.transformer_depth,
        linear=config.linear_projection,
        cross_only=cross_only,
        upcast=config.upcast_attention,
    )


def make_encoder(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the number of channels that each of its stages leaves."""
    channels = config.model_channels
    stages = [Stage(nn.Conv2d(config.in_channels, channels, 3, padding=1))]
    skips = [channels]
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [make_res_block(config, channels, mult * config.model_channels)]
            channels = mult * config.model_channels
            if config.attention_levels[level]:
                layers.append(make_attention(config, channels, cross_only=config.cross_only(level)))
            stages.append(Stage(*layers))
            skips.append(channels)
        if level < len(config.channel_mult) - 1:
            stages.append(Stage(Downsample(channels)))
            skips.append(channels)
    return nn.ModuleList(stages), skips


def make_middle(config: UNetConfig) -> Stage:
    channels = config.model_channels * config.channel_mult[-1]
    attention = [make_attention(config, channels)] if config.middle_attention else []
    return Stage(make_res_block(config, channels, channels), *attention, make_res_block(config, channels, channels))


def make_decoder(config: UNetConfig, skips: Sequence[int]) -> nn.ModuleList:
    """The way up. `skips`: channels of the encoder's stages, which it takes from the last to the first."""
    remaining = list(skips)
    channels = config.model_channels * config.channel_mult[-1]
    stages = []
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        for i in range(config.num_res_blocks + 1):
            layers: list[nn.Module] = [make_res_block(config, channels + remaining.pop(), mult * config.model_channels)]
            channels = mult * config.model_channels
            if config.attention_levels[level]:
                layers.append(make_attention(config, channels, cross_only=config.cross_only(level)))
            if level > 0 and i == config.num_res_blocks:
                layers.append(Upsample(channels))
            stages.append(Stage(*layers))
    return nn.ModuleList(stages)


def check_context(config: UNetConfig, context: Tensor | None) -> None:
    """ValueError unless a context of the right width is given exactly when the network takes one."""
    width = None if context is None else context.shape[-1]
    if width != config.context_channels:
        raise ValueError(f"context of width {width}: this network takes {config.context_channels}")


class UNet(nn.Module):
    """Predicts noise, v or whatever it was trained for, from a noised image or latent.

    Ronneberger et al. 2015 as in Ho et al. 2020, with the transformers of Rombach et al. 2022 where there is a context.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbed(config.model_channels, config.emb_channels)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, config.emb_channels)
        self.input_blocks, skips = make_encoder(config)
        self.middle_block = make_middle(config)
        self.output_blocks = make_decoder(config, skips)
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, config.model_channels * config.channel_mult[0], eps=1e-5),
            nn.SiLU(),
            zero_init(nn.Conv2d(config.model_channels * config.channel_mult[0], config.out_channels, 3, padding=1)),
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        *,
        context: Tensor | None = None,
        labels: Tensor | None = None,
        controls: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The raw output, B C' H W in z's dtype.

        z: B C H W, scaled to unit variance, any H and W >= 1. t: [B], fractions allowed. context: B L D, exactly if
        the network takes one. labels: int64 [B], exactly if it has classes. controls: what a ControlNet adds to each
        stage's output on the way down and, last, to the middle's. features: what a T2I-Adapter adds at the end of each
        level on the way down, before its resolution is halved. ValueError where these do not fit the network.
        """
        check_context(self.config, context)
        if (labels is None) != (self.config.num_classes is None):
            raise ValueError(
                f"labels {'missing' if labels is None else 'given'}: num_classes {self.config.num_classes}"
            )
        if controls is not None and len(controls) != len(self.input_blocks) + 1:
            raise ValueError(f"{len(controls)} controls: this network takes {len(self.input_blocks) + 1}")
        levels, stages = len(self.config.channel_mult), self.config.num_res_blocks + 1
        if features is not None and len(features) != levels:
            raise ValueError(f"features of {len(features)} levels: this network has {levels}")

        emb = self.time_embed(t)  # B E
        if labels is not None:
            emb = emb + self.label_emb(labels)  # B E

        skips = []
        h = z
        for i, stage in enumerate(self.input_blocks):
            h = stage(h, emb, context)
            if features is not None and (i + 1) % stages == 0:  # stage 0 is the convolution before the first level
                h = h + features[i // stages]
            skips.append(h)
        h = self.middle_block(h, emb, context)
        if controls is not None:
            *added, middle = controls
            skips = [skip + control for skip, control in zip(skips, added, strict=True)]
            h = h + middle
        for stage in self.output_blocks:
            h = torch.cat([h, skips.pop()], 1)
            # Odd sizes are rounded up on the way down: return to what the next skip has.
            h = stage(h, emb, context, skips[-1].shape[-2:] if skips else None)
        out: Tensor = self.out(h)
        return out
