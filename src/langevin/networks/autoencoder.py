"""The KL-regularised autoencoder of latent diffusion (Rombach et al. 2022), named as in the original files."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.attention import attend
from langevin.networks.blocks import GROUPS, Upsample, check_counts
from langevin.networks.convolution import Conv3x3


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What shapes the autoencoder. The defaults are those of Stable Diffusion: 8 x 8 pixels become one latent pixel."""

    in_channels: int = 3
    """Channels of the picture."""
    latent_channels: int = 4
    """Channels of the latent."""
    base_channels: int = 128
    """Channels of the first level: a multiple of `groups`."""
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level, as multiples of `base_channels`; the size halves len(channel_mult) - 1 times."""
    num_res_blocks: int = 2
    """Residual blocks of each level in the encoder; the decoder has one more."""
    groups: int = GROUPS
    """Groups of each GroupNorm. With one channel a group it is instance normalisation, which takes the mean of every
    channel, and with it the colour of a flat picture, out of the features: narrow networks want fewer groups."""

    def __post_init__(self) -> None:
        check_counts(self, in_channels=1, latent_channels=1, base_channels=1, num_res_blocks=1, groups=1)
        if not self.channel_mult:
            raise ValueError("channel_mult is empty: give one entry for each level")
        for mult in self.channel_mult:
            if mult * self.base_channels <= 0 or mult * self.base_channels % self.groups:
                raise ValueError(
                    f"a level of {mult * self.base_channels} channels: must be a multiple of {self.groups}"
                )

    @property
    def factor(self) -> int:
        """Pixels of the picture along the side of one latent pixel."""
        return 2 ** (len(self.channel_mult) - 1)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions around a skip connection."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels, groups)
        self.conv1 = Conv3x3(channels, out_channels)
        self.norm2 = norm(out_channels, groups)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B C' H W."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention over the pixels with a single head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W, returns the same."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))  # B 1 N C
        h = attend(q, k, v).squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:])  # B C H W
        return x + self.proj_out(h)


class Middle(nn.Module):
    """The lowest level: residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W, returns the same."""
        h: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return h


class AsymmetricDownsample(nn.Module):
    """Halve height and width, rounding down: stride 2, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B C H/2 W/2."""
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return h


def res_blocks(channels: int, out_channels: int, count: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResnetBlock(channels if i == 0 else out_channels, out_channels, groups) for i in range(count))


class DownLevel(nn.Module):
    def __init__(self, channels: int, out_channels: int, blocks: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.block = res_blocks(channels, out_channels, blocks, groups)
        self.downsample = nn.Identity() if last else AsymmetricDownsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        x = self.downsample(x)
        return x


class UpLevel(nn.Module):
    def __init__(self, channels: int, out_channels: int, blocks: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.block = res_blocks(channels, out_channels, blocks, groups)
        self.upsample = nn.Identity() if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Picture to the moments of the latent, before the last 1x1 convolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(before, width, config.num_res_blocks, config.groups, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip([config.base_channels, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B 2c h w."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return h


class Decoder(nn.Module):
    """Latent to picture. `up` is numbered by resolution: the last entry, the coarsest, runs first."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups)
        self.up = nn.ModuleList(
            UpLevel(before, width, config.num_res_blocks + 1, config.groups, last=i == 0)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: B c h w. Returns B C H W."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h


class AutoencoderKL(nn.Module):
    """Pictures in [-1, 1] to latents and back. The latents' scale factor belongs to `langevin.model`, not here."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent, each B c h w; the log variance is clamped to [-30, 20].

        image: B 3 H W in [-1, 1], H and W multiples of `config.factor` (ValueError otherwise).
        """
        factor = self.config.factor
        height, width = image.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"picture of {width} x {height}: this autoencoder takes multiples of {factor}")
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, 1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Picture of a latent: B 3 H W, about [-1, 1], not clamped. z: B c h w, not scaled."""
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image
