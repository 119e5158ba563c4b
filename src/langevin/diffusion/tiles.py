"""Pictures larger than the model was trained for: one denoiser that asks another about overlapping tiles (windows).

MultiDiffusion (Bar-Tal et al. 2023, equation 5 with its closed form) asks for the picture whose every tile is as near
as can be to what the model makes of that tile by itself: the weighted mean of the tiles' answers at each pixel. The
paper averages the states after a DDIM step. A step of any sampler here is affine in x0 at a given x and sigma, so that
the mean of the steps is the step of the mean of x0, and no sampler needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.errors import RequestError


@dataclass(frozen=True)
class Tile:
    """A part of a feature map. Where the map wraps it may go beyond the last row or column, to the first ones."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """The tile of x, B C H W: B C height width."""
        return x[(..., *self._places(x))]

    def add_to(self, x: Tensor, values: Tensor) -> None:
        """Adds values, B C height width, to the tile of x, B C H W, in place."""
        x[(..., *self._places(x))] += values

    def _places(self, x: Tensor) -> tuple[Tensor | slice, Tensor | slice]:
        height, width = x.shape[-2:]
        if self.top + self.height <= height and self.left + self.width <= width:
            return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        rows = torch.arange(self.top, self.top + self.height, device=x.device) % height
        columns = torch.arange(self.left, self.left + self.width, device=x.device) % width
        return rows[:, None], columns


def tiles_over(
    size: tuple[int, int], tile: tuple[int, int], overlap: float = 0.5, *, wraps: tuple[bool, bool] = (False, False)
) -> list[Tile]:
    """Tiles that cover a map of size (H, W), row by row. Each pixel is in one at least.

    tile: height and width of each, cut to those of the map. overlap: the least share of a tile's side that it has
    in common with the next one, 0 to below 1; the tiles are spread evenly. wraps: whether the last row (column) is
    beside the first: tiles then go across, unless one covers the whole axis.
    """
    if not 0 <= overlap < 1:
        raise RequestError(f"overlap {overlap:g} is out of range; it must be at least 0 and below 1")
    (height, rows), (width, columns) = (
        _starts(length, part, overlap, around) for length, part, around in zip(size, tile, wraps, strict=True)
    )
    return [Tile(top, left, height, width) for top in rows for left in columns]


def tiled(part: Callable[[Tile], Denoiser], tiles: Sequence[Tile]) -> Denoiser:
    """The weighted mean of what the tiles' denoisers say, pixel by pixel.

    part: the denoiser of one tile, with what it is conditioned on cut to it. The weights fall from the middle of a
    tile to its edges like a tent, so that no edge is seen where tiles disagree. One tile is called after the
    other: memory is that of one. The learned variance is averaged like x0.
    """
    parts = [(tile, part(tile)) for tile in tiles]

    def denoise(x: Tensor, sigma: float) -> Estimate:
        total = x.new_zeros(1, 1, *x.shape[-2:])
        x0, fraction = torch.zeros_like(x), None
        for tile, denoiser in parts:
            estimate = denoiser(tile.of(x).contiguous(), sigma)
            weight = _tent(tile, x)
            tile.add_to(total, weight)
            tile.add_to(x0, weight * estimate.x0)
            if estimate.variance_fraction is not None:
                fraction = torch.zeros_like(x) if fraction is None else fraction
                tile.add_to(fraction, weight * estimate.variance_fraction)
        return Estimate(x0 / total, None if fraction is None else fraction / total)

    return denoise


def _starts(length: int, part: int, overlap: float, wraps: bool) -> tuple[int, list[int]]:
    """The tiles' length along one axis, and where they begin."""
    if part >= length:
        return length, [0]
    stride = max(1, int(part * (1 - overlap)))
    if wraps:
        count = -(-length // stride)
        return part, [i * length // count for i in range(count)]
    count = -(-(length - part) // stride) + 1
    return part, [round(i * (length - part) / (count - 1)) for i in range(count)]


def _tent(tile: Tile, x: Tensor) -> Tensor:
    """Weights 1 1 height width, positive everywhere."""

    def rise(n: int) -> Tensor:
        place = torch.arange(n, dtype=x.dtype, device=x.device) + 0.5
        return torch.minimum(place, n - place) * (2 / n)

    return (rise(tile.height)[:, None] * rise(tile.width))[None, None]
