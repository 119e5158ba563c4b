"""The autoencoder in horizontal strips: the same result as in one piece, in a fraction of the memory.

Cutting a latent into tiles and decoding each by itself gives other pictures: group normalisation takes its statistics
over the whole feature map, and the attention of the lowest level looks at all of it. Here every layer is exact. A
feature map is a function from a range of rows to those rows; a convolution asks for one row more at each end;
normalisation first passes over all strips for mean and variance, then over them again. What is kept in memory are the
outputs of blocks, and of those the rows that the next block has used are given back while its own output grows. So
at the picture's full size little more than one feature map is there, where the plain way holds three or four, of more
channels. Results differ from it by rounding alone, since sums are taken in another order.

The price: the first convolution of a block runs twice, and enlargements, which are not kept, three times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.attention import attend
from langevin.networks.autoencoder import (
    AsymmetricDownsample,
    AttnBlock,
    AutoencoderKL,
    DownLevel,
    Middle,
    ResnetBlock,
    UpLevel,
)
from langevin.networks.blocks import Upsample

STRIP = 2**22
"""About how many numbers of a feature map one strip holds: 16 MiB in float32."""
LEAST_ROWS = 16
"""A strip has at least this many rows: each is computed with one to five more around it."""


def decode(autoencoder: AutoencoderKL, z: Tensor) -> Tensor:
    """What `autoencoder.decode(z)` gives, but for rounding. z: B c h w. Returns B 3 H W."""
    decoder = autoencoder.decoder
    h: FeatureMap = _middle(decoder.mid, Kept.of(decoder.conv_in(autoencoder.post_quant_conv(z))))
    for level in reversed(decoder.up):
        h = _level(cast(UpLevel, level), h)
        upsample = cast(UpLevel, level).upsample
        if isinstance(upsample, Upsample):
            h = Convolved(Enlarged(h), upsample.conv)
    return Convolved(Activated(h, decoder.norm_out), decoder.conv_out).whole()


def encode(autoencoder: AutoencoderKL, image: Tensor) -> tuple[Tensor, Tensor]:
    """What `autoencoder.moments(image)` gives, but for rounding: mean and log variance, each B c h w.

    image: B 3 H W, H and W multiples of the autoencoder's factor.
    """
    encoder = autoencoder.encoder
    h: FeatureMap = Convolved(Kept.of(image), encoder.conv_in)
    for level in encoder.down:
        h = _level(cast(DownLevel, level), h)
        downsample = cast(DownLevel, level).downsample
        if isinstance(downsample, AsymmetricDownsample):
            h = Kept(Halved(h, downsample))
    h = Convolved(Activated(_middle(encoder.mid, h), encoder.norm_out), encoder.conv_out)
    mean, logvar = autoencoder.quant_conv(h.whole()).chunk(2, 1)
    return mean, logvar.clamp(-30.0, 20.0)


def _middle(middle: Middle, h: FeatureMap) -> Kept:
    h = _block(middle.block_1, h)
    return _block(middle.block_2, Kept.of(_attended(middle.attn_1, h.whole())))


def _attended(block: AttnBlock, x: Tensor) -> Tensor:
    """What `block(x)` gives. Its queries, keys and values lie in memory such that torch takes a kernel that never holds
    the whole matrix of weights: at 1024 x 1024 pixels that is 1 GiB, and 16 times as much at twice the width."""
    h = block.norm(x)
    q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for f in (block.q, block.k, block.v))
    h = attend(q, k, v).squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:])  # B C H W
    out: Tensor = x + block.proj_out(h)
    return out


def _level(level: DownLevel | UpLevel, h: FeatureMap) -> FeatureMap:
    for block in level.block:
        h = _block(cast(ResnetBlock, block), h)
    return h


def _block(block: ResnetBlock, x: FeatureMap) -> Kept:
    source = Remembered(x)
    inner = Convolved(Activated(source, block.norm1), block.conv1)
    changed = Convolved(Activated(inner, block.norm2), block.conv2)
    return Kept(Sum(changed, source, block.nin_shortcut), gives_back=x if isinstance(x, Kept) else None)


class FeatureMap(ABC):
    """A feature map B C H W of which any rows can be had."""

    def __init__(self, batch: int, channels: int, height: int, width: int, source: FeatureMap | None = None) -> None:
        """source: what the map is computed from, where that is not in memory as a whole."""
        self.batch, self.channels, self.height, self.width = batch, channels, height, width
        self.row = batch * channels * width
        """Numbers of the largest map that has to be there for one row of this one."""
        if source is not None:
            self.row = max(self.row, source.row * source.height // height)

    @abstractmethod
    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows `top` to `bottom`, the latter not included: B C (bottom - top) W. 0 <= top < bottom <= H."""

    def strips(self) -> Iterator[tuple[int, int]]:
        """The ranges of rows in which the map is passed over, from the top."""
        rows = max(LEAST_ROWS, STRIP // self.row)
        for top in range(0, self.height, rows):
            yield top, min(top + rows, self.height)

    def whole(self) -> Tensor:
        """B C H W."""
        return torch.cat([self.rows(top, bottom) for top, bottom in self.strips()], 2)


class Kept(FeatureMap):
    """A feature map in memory, strip by strip."""

    def __init__(self, source: FeatureMap, gives_back: Kept | None = None) -> None:
        """Computes `source`. gives_back: what it is computed from, where nothing else will ask for that: rows that
        are no longer needed are dropped on the way."""
        super().__init__(source.batch, source.channels, source.height, source.width)
        self._strips: list[tuple[int, int, Tensor | None]] = []
        for top, bottom in source.strips():
            self._strips.append((top, bottom, source.rows(top, bottom)))
            if gives_back is not None:
                gives_back._drop(bottom - 2)  # two 3x3 convolutions reach two rows further up

    @classmethod
    def of(cls, whole: Tensor) -> Kept:
        """A tensor B C H W that is there already."""
        kept = cls.__new__(cls)
        FeatureMap.__init__(kept, *whole.shape)
        kept._strips = [(0, whole.shape[2], whole)]
        return kept

    def rows(self, top: int, bottom: int) -> Tensor:
        parts = [
            strip[:, :, max(top - first, 0) : bottom - first]
            for first, last, strip in self._strips
            if first < bottom and last > top and strip is not None
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _drop(self, row: int) -> None:
        """Forgets the strips above `row`, but for the first one: a picture that wraps has it below its last row."""
        self._strips = [
            (first, last, None if first > 0 and last <= row else strip) for first, last, strip in self._strips
        ]


class Remembered(FeatureMap):
    """Another map, whose last rows are remembered: the two ways through a block ask for nearly the same."""

    def __init__(self, source: FeatureMap) -> None:
        super().__init__(source.batch, source.channels, source.height, source.width, source)
        self.source = source
        self._range = (0, 0)
        self._last: Tensor | None = None

    def rows(self, top: int, bottom: int) -> Tensor:
        first, last = self._range
        if self._last is None or top < first or bottom > last:
            self._range, self._last = (top, bottom), self.source.rows(top, bottom)
            return self._last
        return self._last[:, :, top - first : bottom - first]


class Convolved(FeatureMap):
    """After a 3x3 convolution of stride 1."""

    def __init__(self, source: FeatureMap, conv: nn.Conv2d) -> None:
        super().__init__(source.batch, conv.out_channels, source.height, source.width, source)
        self.source = source
        self.conv = conv

    def rows(self, top: int, bottom: int) -> Tensor:
        source, wraps = self.source, getattr(self.conv, "wraps_y", False)
        above, below = max(top - 1, 0), min(bottom + 1, source.height)
        h = source.rows(above, below)
        if wraps and top == 0:
            h = torch.cat([source.rows(source.height - 1, source.height), h], 2)
        if wraps and bottom == source.height:
            h = torch.cat([h, source.rows(0, 1)], 2)
        # The convolution pads again: of its rows those are taken that saw their true neighbours, or the true edge.
        skipped = top - above if not wraps else 1
        out: Tensor = self.conv(h)
        return out[:, :, skipped : skipped + bottom - top]


class Halved(FeatureMap):
    """After the encoder's convolution of stride 2, padded at the right and bottom only."""

    def __init__(self, source: FeatureMap, down: AsymmetricDownsample) -> None:
        super().__init__(source.batch, down.conv.out_channels, source.height // 2, source.width // 2, source)
        self.source = source
        self.down = down

    def rows(self, top: int, bottom: int) -> Tensor:
        below = min(2 * bottom + 1, self.source.height)
        h = self.source.rows(2 * top, below)
        if getattr(self.down, "wraps_y", False) and bottom == self.height:
            h = torch.cat([h, self.source.rows(0, 1)], 2)
        # Where a row follows, the row of padding is not reached; an even number of rows needs it.
        out: Tensor = self.down(h)
        return out[:, :, : bottom - top]


class Enlarged(FeatureMap):
    """Each pixel as 2 x 2 pixels: nearest-neighbour interpolation."""

    def __init__(self, source: FeatureMap) -> None:
        super().__init__(source.batch, source.channels, 2 * source.height, 2 * source.width, source)
        self.source = source

    def rows(self, top: int, bottom: int) -> Tensor:
        first = top // 2
        h = F.interpolate(self.source.rows(first, (bottom + 1) // 2), scale_factor=2.0, mode="nearest")
        return h[:, :, top - 2 * first : bottom - 2 * first]


class Activated(FeatureMap):
    """After group normalisation over the whole map and SiLU."""

    def __init__(self, source: FeatureMap, norm: nn.GroupNorm) -> None:
        super().__init__(source.batch, source.channels, source.height, source.width, source)
        self.source = source
        mean, variance = moments(source, norm.num_groups)  # B G, float64
        deviation = torch.rsqrt(variance + norm.eps)
        per = self.channels // norm.num_groups
        scale = deviation.repeat_interleave(per, 1) * norm.weight.double()  # B C
        shift = norm.bias.double() - mean.repeat_interleave(per, 1) * scale
        self.scale, self.shift = (v.float()[:, :, None, None] for v in (scale, shift))

    def rows(self, top: int, bottom: int) -> Tensor:
        h = self.source.rows(top, bottom)
        return F.silu((h.float() * self.scale).add_(self.shift).to(h.dtype), inplace=True)


class Sum(FeatureMap):
    """A block's way and its shortcut together."""

    def __init__(self, changed: FeatureMap, source: FeatureMap, shortcut: nn.Module) -> None:
        super().__init__(changed.batch, changed.channels, changed.height, changed.width, changed)
        self.changed, self.source, self.shortcut = changed, source, shortcut

    def rows(self, top: int, bottom: int) -> Tensor:
        h = self.changed.rows(top, bottom)
        out: Tensor = self.shortcut(self.source.rows(top, bottom)) + h
        return out


def moments(source: FeatureMap, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels over the whole map, float64 B G.

    Each strip's own, in float32, are joined in float64: exact sums of squares around the mean, which a sum of squares
    around zero would lose in rounding (Chan et al. 1979, equation 2.1).
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for top, bottom in source.strips():
        h = source.rows(top, bottom).float().unflatten(1, (groups, -1)).flatten(2)  # B G n
        n = h.shape[2]
        variance, centre = (v.double() for v in torch.var_mean(h, 2, correction=0))
        if not count:
            count, mean, squares = n, centre, variance * n
            continue
        delta, total = centre - mean, count + n
        squares = squares + variance * n + delta.square() * (count * n / total)
        mean = mean + delta * (n / total)
        count = total
    return mean, squares / count
