"""T2I-Adapter: a small network that makes of a hint what is added at each level of the U-Net's way down (Mou et al.
2023, section 3.3), its parts named as in the original files."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from langevin.networks.blocks import check_counts

CELL = 8
"""Pixels of the hint along one side of the first level's cell."""


@dataclass(frozen=True, kw_only=True)
class T2IAdapterConfig:
    """Everything that shapes a T2I-Adapter. The defaults are those of the full ones for Stable Diffusion."""

    hint_channels: int = 3
    """3 for colours, 1 for sketches and edges."""
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of each level: the U-Net's own."""
    num_res_blocks: int = 2
    """Residual blocks in each level."""
    light: bool = False
    """The light kind, a twentieth of the size: its residual blocks work on a quarter of the channels."""

    def __post_init__(self) -> None:
        check_counts(self, hint_channels=1, num_res_blocks=1)
        if not self.channels or any(c < 4 or c % 4 for c in self.channels):
            raise ValueError(f"channels {self.channels}: must be multiples of 4, one for each level")


class AdapterResBlock(nn.Module):
    """Two convolutions with a ReLU around a skip connection, after the change of width and resolution, if any."""

    def __init__(self, channels: int, out_channels: int, *, down: bool = False, kernel: int = 1) -> None:
        super().__init__()
        # Odd sides are rounded up, as the U-Net's are.
        self.down = nn.AvgPool2d(2, ceil_mode=True) if down else nn.Identity()
        self.in_conv = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.block1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.act = nn.ReLU()
        self.block2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B C' H W, or half the height and width."""
        h = self.in_conv(self.down(x))
        out: Tensor = h + self.block2(self.act(self.block1(h)))
        return out


class LightLevel(nn.Module):
    """One level of the light kind: into a quarter of the channels, the residual blocks, and out again."""

    def __init__(self, channels: int, out_channels: int, blocks: int, *, down: bool) -> None:
        super().__init__()
        inner = out_channels // 4
        self.down = nn.AvgPool2d(2, ceil_mode=True) if down else nn.Identity()
        self.in_conv = nn.Conv2d(channels, inner, 1)
        self.body = nn.Sequential(*(AdapterResBlock(inner, inner, kernel=3) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(inner, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B C' H W, or half the height and width."""
        out: Tensor = self.out_conv(self.body(self.in_conv(self.down(x))))
        return out


class T2IAdapter(nn.Module):
    """Features for each level of the U-Net, from a hint alone: it sees neither the latent nor the noise level."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.unshuffle = nn.PixelUnshuffle(CELL)
        given = config.hint_channels * CELL * CELL
        if not config.light:
            self.conv_in = nn.Conv2d(given, config.channels[0], 3, padding=1)
        blocks: list[nn.Module] = []
        channels = given if config.light else config.channels[0]
        for level, width in enumerate(config.channels):
            if config.light:
                blocks.append(LightLevel(channels, width, config.num_res_blocks, down=level > 0))
            else:
                blocks.append(AdapterResBlock(channels, width, down=level > 0))
                blocks += [AdapterResBlock(width, width) for _ in range(config.num_res_blocks - 1)]
            channels = width
        self.body = nn.ModuleList(blocks)

    def forward(self, hint: Tensor) -> tuple[Tensor, ...]:
        """The features of each level, the highest resolution first: B C h w, B C' h/2 w/2 ...

        hint: B C 8h 8w in [0, 1].
        """
        h: Tensor = self.unshuffle(hint)
        if not self.config.light:
            h = self.conv_in(h)
        features = []
        blocks = 1 if self.config.light else self.config.num_res_blocks
        for i, block in enumerate(self.body, 1):
            h = block(h)
            if i % blocks == 0:
                features.append(h)
        return tuple(features)
