"""PixelCNN++ (Salimans et al. 2017): two streams of shifted convolutions, so that a pixel sees only those before it.

The *down* stream at row i knows the pixels of the rows above; the *right* stream at (i, j) knows those and the pixels
to the left. Both run through gated residual blocks at several resolutions with skip connections between equal ones.

A network can be evaluated at one `Place` at a time: the convolutions then keep the two rows of their input that they
look at, so that a picture made pixel by pixel costs about as much arithmetic as one pass over it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.baselines.logistic import parameter_count
from langevin.networks.blocks import check_counts


@dataclass(frozen=True, kw_only=True)
class PixelCnnConfig:
    """What shapes the network. The paper's is width=160, levels=3, blocks=5, components=10, dropout=0.5."""

    size: int = 28
    """Height and width of the pictures: a multiple of `factor`."""
    channels: int = 1
    """Of a pixel: 1 (grey) or 3."""
    width: int = 32
    """Channels of each stream."""
    levels: int = 2
    """Resolutions; height and width halve from one to the next."""
    blocks: int = 1
    """Residual blocks of each stream on the way in at each level."""
    components: int = 5
    """Logistic distributions in the mixture."""
    dropout: float = 0.0
    """In the residual blocks, in training."""

    def __post_init__(self) -> None:
        check_counts(self, size=1, width=1, levels=1, blocks=1, components=1)
        if self.size % self.factor:
            raise ValueError(f"size {self.size}: must be a multiple of {self.factor} for {self.levels} levels")
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: must be 1 or 3")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: must be at least 0 and below 1")

    @property
    def factor(self) -> int:
        """Height and width are multiples of this."""
        return 2 ** (self.levels - 1)


@dataclass(eq=False)
class Place:
    """The part of the picture that is computed: one pixel of a row, or a row. Places follow in reading order."""

    memory: dict[nn.Module, tuple[int, Tensor]]
    """What layers keep of earlier places, with the row it belongs to."""
    row: int
    column: int | None
    """None: the whole row."""
    width: int
    """Of the row, at this resolution."""

    def coarser(self) -> Place:
        """The place at half the resolution that begins here."""
        return Place(self.memory, self.row // 2, None if self.column is None else self.column // 2, self.width // 2)

    @property
    def begins(self) -> bool:
        """Whether a place at half the resolution begins here."""
        return self.row % 2 == 0 and (self.column or 0) % 2 == 0


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, twice the channels (Salimans et al. 2017, their program)."""
    return F.elu(torch.cat([x, -x], 1))


class ShiftedConv(nn.Module):
    """A convolution over the row above and this one: around the column (`right` False), or left of it and itself."""

    def __init__(
        self, channels: int, out_channels: int, kernel: tuple[int, int], *, right: bool, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride)
        self.above = kernel[0] - 1
        self.left = kernel[1] - 1 if right else kernel[1] // 2
        self.after = kernel[1] - 1 - self.left

    def forward(self, x: Tensor, place: Place | None) -> Tensor:
        """x: B C H W. Returns B C' H/stride W/stride, or of the place alone."""
        if place is None:
            out: Tensor = self.conv(F.pad(x, (self.left, self.after, self.above, 0)))
            return out
        self.keep(x, place)
        window = place.memory[self][1]
        if place.column is not None:
            window = window[..., place.column : place.column + self.left + self.after + 1]
        out = self.conv(window)
        return out

    def keep(self, x: Tensor, place: Place) -> None:
        """Remember the input at a place: B C 1 1, or B C 1 W for a row."""
        if self not in place.memory:
            shape = (*x.shape[:2], self.above + 1, place.width + self.left + self.after)
            place.memory[self] = place.row, x.new_zeros(shape)
        row, kept = place.memory[self]
        if row != place.row:
            kept[:, :, :-1] = kept[:, :, 1:].clone()
            kept[:, :, -1] = 0
            place.memory[self] = place.row, kept
        start = self.left + (place.column or 0)
        kept[:, :, -1, start : start + x.shape[-1]] = x[:, :, 0]


class Grow(nn.Module):
    """Twice the height and width: a transposed convolution with kernel and stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor, place: Place | None) -> Tensor:
        """x: B C H W to B C 2H 2W, or to the place, at the finer resolution, that lies in x."""
        if place is None:
            out: Tensor = self.conv(x)
            return out
        row = place.row % 2
        weight = self.conv.weight[:, :, row : row + 1]
        if place.column is None:
            return F.conv_transpose2d(x, weight, self.conv.bias, stride=(1, 2))
        column = place.column % 2
        return F.conv_transpose2d(x, weight[..., column : column + 1], self.conv.bias)


class GatedBlock(nn.Module):
    """Two shifted convolutions around a skip connection, gated, with other features added between (figure 2)."""

    def __init__(self, width: int, other: int, *, right: bool, dropout: float) -> None:
        super().__init__()
        kernel = (2, 2) if right else (2, 3)
        self.first = ShiftedConv(2 * width, width, kernel, right=right)
        self.other = nn.Conv2d(2 * other, width, 1) if other else None
        self.dropout = nn.Dropout(dropout)
        self.second = ShiftedConv(2 * width, 2 * width, kernel, right=right)
        with torch.no_grad():  # begin near the identity
            self.second.conv.weight.mul_(0.1)

    def forward(self, x: Tensor, other: Tensor | None, place: Place | None) -> Tensor:
        """x: B C H W; other: B C' H W. Returns B C H W."""
        h = self.first(concat_elu(x), place)
        if self.other is not None:
            assert other is not None
            h = h + self.other(concat_elu(other))
        value, gate = self.second(self.dropout(concat_elu(h)), place).chunk(2, 1)
        return x + value * torch.sigmoid(gate)


class Level(nn.Module):
    """The blocks of both streams at one resolution, and the ways to the next coarser one and back."""

    def __init__(self, config: PixelCnnConfig, *, last: bool) -> None:
        super().__init__()
        width, more = config.width, config.blocks + (not last)

        def blocks(count: int, other: int, right: bool) -> nn.ModuleList:
            return nn.ModuleList(GatedBlock(width, other, right=right, dropout=config.dropout) for _ in range(count))

        self.last = last
        self.down_before = blocks(config.blocks, 0, False)
        self.down_after = blocks(more, width, False)
        self.right_before = blocks(config.blocks, width, True)
        self.right_after = blocks(more, 2 * width, True)
        if not last:
            self.down_shrink = ShiftedConv(width, width, (2, 3), right=False, stride=2)
            self.right_shrink = ShiftedConv(width, width, (2, 2), right=True, stride=2)
            self.down_grow = Grow(width)
            self.right_grow = Grow(width)


class PixelCnn(nn.Module):
    """From pixels to the parameters of each pixel's mixture, given the pixels before it in reading order."""

    def __init__(self, config: PixelCnnConfig) -> None:
        super().__init__()
        self.config = config
        inputs, width = config.channels + 1, config.width
        self.down_in = ShiftedConv(inputs, width, (2, 3), right=False)
        self.right_in_above = ShiftedConv(inputs, width, (1, 3), right=False)
        self.right_in_left = ShiftedConv(inputs, width, (2, 1), right=True)
        self.levels = nn.ModuleList(Level(config, last=i == config.levels - 1) for i in range(config.levels))
        self.out = nn.Conv2d(width, parameter_count(config.channels, config.components), 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C S S in [-1, 1], S the configured size. Returns B P S S for `logistic.split`."""
        marked = _marked(x)
        above = F.pad(marked, (0, 0, 1, 0))[:, :, :-1]  # each row is that of the row before
        left = F.pad(marked, (1, 0))[..., :-1]
        found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._down(0, self.down_in(above, None), found, None)
        r = self.right_in_above(above, None) + self.right_in_left(left, None)
        return self._out(self._right(0, r, found, None))

    def _out(self, r: Tensor) -> Tensor:
        out: Tensor = self.out(F.elu(r))
        return out

    def _down(
        self, index: int, u: Tensor, found: dict[int, tuple[list[Tensor], list[Tensor]]], place: Place | None
    ) -> None:
        """Fill `found` with the states after the blocks of each level, on the way in and on the way out."""
        level = self.levels[index]
        assert isinstance(level, Level)
        skips, before, after = [u], list[Tensor](), list[Tensor]()
        for block in level.down_before:
            u = block(u, None, place)
            before.append(u)
            skips.append(u)
        if level.last:
            skips.pop()
        else:
            if place is None or place.begins:
                small = level.down_shrink(u, place)
                self._down(index + 1, small, found, place and place.coarser())
            else:
                level.down_shrink.keep(u, place)
            u = level.down_grow(found[index + 1][1][-1], place)
        for block in level.down_after:
            u = block(u, skips.pop(), place)
            after.append(u)
        found[index] = before, after

    def _right(
        self, index: int, r: Tensor, found: dict[int, tuple[list[Tensor], list[Tensor]]], place: Place | None
    ) -> Tensor:
        level = self.levels[index]
        assert isinstance(level, Level)
        skips = [r]
        for block, u in zip(level.right_before, found[index][0], strict=True):
            r = block(r, _at(u, place), place)
            skips.append(r)
        if level.last:
            skips.pop()
        else:
            if place is None:
                small = self._right(index + 1, level.right_shrink(r, None), found, None)
            else:
                small = self._small(index, r, found, place)
            r = level.right_grow(small, place)
        for block, u in zip(level.right_after, found[index][1], strict=True):
            r = block(r, torch.cat([_at(u, place), skips.pop()], 1), place)
        return r

    def _small(
        self, index: int, r: Tensor, found: dict[int, tuple[list[Tensor], list[Tensor]]], place: Place
    ) -> Tensor:
        """What the coarser level says of the pixel: computed where its place begins, and remembered for the rest."""
        level = self.levels[index]
        assert isinstance(level, Level) and place.column is not None
        column = place.column // 2
        if not place.begins:
            level.right_shrink.keep(r, place)
        else:
            small = self._right(index + 1, level.right_shrink(r, place), found, place.coarser())
            if level not in place.memory:
                place.memory[level] = 0, small.new_zeros(*small.shape[:3], place.width // 2)
            place.memory[level][1][..., column] = small[..., 0]
        return place.memory[level][1][..., column : column + 1]


class PixelByPixel:
    """The network evaluated in reading order; pixels are given as they become known."""

    def __init__(self, network: PixelCnn, count: int) -> None:
        """count: pictures made at once."""
        self.network = network
        self.width = network.config.size
        like = network.out.weight
        self._memory: dict[nn.Module, tuple[int, Tensor]] = {}
        self._found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._above = like.new_zeros(count, network.config.channels + 1, 1, self.width)
        self._row = torch.zeros_like(self._above)
        self._from_above = self._above
        self._next = 0

    @property
    def device(self) -> torch.device:
        return self._above.device

    @torch.no_grad()
    def parameters_of_next(self) -> Tensor:
        """B P 1 1: the mixture of the next pixel. Call `put` before asking for another."""
        row, column = divmod(self._next, self.width)
        network = self.network
        if column == 0:
            place = Place(self._memory, row, None, self.width)
            self._above, self._row = self._row, torch.zeros_like(self._row)
            network._down(0, network.down_in(self._above, place), self._found, place)
            self._from_above = network.right_in_above(self._above, place)
        place = Place(self._memory, row, column, self.width)
        left = self._row[..., column - 1 : column] if column else torch.zeros_like(self._row[..., :1])
        r = self._from_above[..., column : column + 1] + network.right_in_left(left, place)
        return network._out(network._right(0, r, self._found, place))

    def put(self, pixel: Tensor) -> None:
        """What the next pixel is: B C."""
        self._row[:, :, 0, self._next % self.width] = _marked(pixel[:, :, None, None])[:, :, 0, 0].to(self._row)
        self._next += 1


def _marked(x: Tensor) -> Tensor:
    """A channel of ones beside the pixels: it tells them from the margin, which is zero throughout."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def _at(u: Tensor, place: Place | None) -> Tensor:
    return u if place is None or place.column is None else u[..., place.column : place.column + 1]
