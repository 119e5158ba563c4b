"""Pictures larger than the model was trained for: one denoiser that asks another about overlapping windows.

MultiDiffusion (Bar-Tal et al. 2023, equation 5 with its closed form) asks for the picture whose every window is as near
as can be to what the model makes of that window by itself: the weighted mean of the windows' answers at each pixel. The
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
class Window:
    """A part of a feature map. Where the map wraps it may go beyond the last row or column, to the first ones."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """The window of x, B C H W: B C height width."""
        return x[(..., *self._places(x))]

    def add_to(self, x: Tensor, values: Tensor) -> None:
        """Adds values, B C height width, to the window of x, B C H W, in place."""
        x[(..., *self._places(x))] += values

    def _places(self, x: Tensor) -> tuple[Tensor | slice, Tensor | slice]:
        height, width = x.shape[-2:]
        if self.top + self.height <= height and self.left + self.width <= width:
            return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        rows = torch.arange(self.top, self.top + self.height, device=x.device) % height
        columns = torch.arange(self.left, self.left + self.width, device=x.device) % width
        return rows[:, None], columns


def windows_over(
    size: tuple[int, int], window: tuple[int, int], overlap: float = 0.5, *, wraps: tuple[bool, bool] = (False, False)
) -> list[Window]:
    """Windows that cover a map of size (H, W), row by row. Each pixel is in one at least.

    window: height and width of each, cut to those of the map. overlap: the least share of a window's side that it has
    in common with the next one, 0 to below 1; the windows are spread evenly. wraps: whether the last row (column) is
    beside the first: windows then go across, unless one covers the whole axis.
    """
    if not 0 <= overlap < 1:
        raise RequestError(f"overlap {overlap:g} is out of range; it must be at least 0 and below 1")
    (height, rows), (width, columns) = (
        _starts(length, part, overlap, around) for length, part, around in zip(size, window, wraps, strict=True)
    )
    return [Window(top, left, height, width) for top in rows for left in columns]


def tiled(part: Callable[[Window], Denoiser], windows: Sequence[Window]) -> Denoiser:
    """The weighted mean of what the windows' denoisers say, pixel by pixel.

    part: the denoiser of one window, with what it is conditioned on cut to it. The weights fall from the middle of a
    window to its edges like a tent, so that no edge is seen where windows disagree. One window is called after the
    other: memory is that of one. The learned variance is averaged like x0.
    """
    parts = [(window, part(window)) for window in windows]

    def denoise(x: Tensor, sigma: float) -> Estimate:
        total = x.new_zeros(1, 1, *x.shape[-2:])
        x0, fraction = torch.zeros_like(x), None
        for window, denoiser in parts:
            estimate = denoiser(window.of(x).contiguous(), sigma)
            weight = _tent(window, x)
            window.add_to(total, weight)
            window.add_to(x0, weight * estimate.x0)
            if estimate.variance_fraction is not None:
                fraction = torch.zeros_like(x) if fraction is None else fraction
                window.add_to(fraction, weight * estimate.variance_fraction)
        return Estimate(x0 / total, None if fraction is None else fraction / total)

    return denoise


def _starts(length: int, part: int, overlap: float, wraps: bool) -> tuple[int, list[int]]:
    """The windows' length along one axis, and where they begin."""
    if part >= length:
        return length, [0]
    stride = max(1, int(part * (1 - overlap)))
    if wraps:
        count = -(-length // stride)
        return part, [i * length // count for i in range(count)]
    count = -(-(length - part) // stride) + 1
    return part, [round(i * (length - part) / (count - 1)) for i in range(count)]


def _tent(window: Window, x: Tensor) -> Tensor:
    """Weights 1 1 height width, positive everywhere."""

    def rise(n: int) -> Tensor:
        place = torch.arange(n, dtype=x.dtype, device=x.device) + 0.5
        return torch.minimum(place, n - place) * (2 / n)

    return (rise(window.height)[:, None] * rise(window.width))[None, None]
