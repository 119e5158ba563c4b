"""Hints for ControlNets that need no network: each takes a picture of any mode to an RGB picture of its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from langevin.images.pixels import to_rgb


def canny(picture: Image.Image, *, low: float = 100.0, high: float = 200.0, deviation: float = 1.0) -> Image.Image:
    """Edges, one pixel wide, white on black (Canny 1986).

    low, high: thresholds of the gradient's length, with pixels from 0 to 255 and Sobel's weights 1 2 1, so that a clean
    step of d has about 3 d; edges above `high` are kept, and those above `low` that touch one. deviation: of the
    Gaussian before it, in pixels; 0 is none. The gradient of a place is that of its strongest colour channel.
    """
    x, y = sobel(blurred(_pixels(picture), deviation))  # H W 3 each
    # Rounded, so that two pixels beside a symmetric step are equally strong however the sums were rounded.
    length = np.hypot(x, y).round(6)
    strongest = length.argmax(2)[..., None]
    x, y, length = (np.take_along_axis(values, strongest, 2)[..., 0] for values in (x, y, length))  # H W
    ridge = np.where(_on_ridge(length, x, y), length, 0.0)
    return _white_on_black(255.0 * _connected(ridge >= low, ridge >= high))


def blur(picture: Image.Image, *, share: float = 1 / 32) -> Image.Image:
    """The picture out of focus: a Gaussian whose deviation is this share of the longer side."""
    pixels = blurred(_pixels(picture), share * max(picture.size))
    return Image.fromarray(pixels.round().astype(np.uint8), "RGB")


def colour_grid(picture: Image.Image, *, cells: int = 8) -> Image.Image:
    """The mean colour of each of `cells` x `cells` equal parts."""
    rgb = to_rgb(picture)
    few = (min(cells, rgb.width), min(cells, rgb.height))
    return rgb.resize(few, Image.Resampling.BOX).resize(rgb.size, Image.Resampling.NEAREST)


def line_art(picture: Image.Image, *, deviation: float = 0.7) -> Image.Image:
    """Lines, and the darker sides of edges, in white on black, the clearer the stronger: a difference of Gaussians.

    deviation: of the narrower Gaussian in pixels, about a third of the width of the lines that are found; the wider
    one's is 1.6 times that (Marr & Hildreth 1980). What is as dark as the 99th percentile, or darker, is white.
    """
    pixels = _pixels(picture)
    darker = (blurred(pixels, 1.6 * deviation) - blurred(pixels, deviation)).max(2).clip(min=0)  # H W
    # A flat picture has nothing to be scaled up but rounding.
    return _white_on_black(255 * (darker / max(1.0, float(np.percentile(darker, 99)))).clip(max=1))


def segments(picture: Image.Image, *, colours: int = 8) -> Image.Image:
    """Flat areas of at most `colours` colours: median cut (Heckbert 1982) refined by k-means, then the commonest colour
    of every 3 x 3 pixels, which takes the seams of antialiased edges away."""
    rgb = to_rgb(picture)
    indexed = rgb.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
    palette = indexed.getpalette()
    assert palette is not None
    numbers = Image.frombytes("L", indexed.size, indexed.tobytes()).filter(ImageFilter.ModeFilter(3))
    numbers.putpalette(palette)
    return numbers.convert("RGB")


HINTS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "blur": blur,
    "colour-grid": colour_grid,
    "line-art": line_art,
    "segments": segments,
}
"""Every maker with its usual values, by name."""


def blurred(pixels: np.ndarray, deviation: float) -> np.ndarray:
    """`pixels` (float64, H W C) under a Gaussian of 4 deviations to each side; edges are repeated outwards."""
    reach = math.ceil(4 * deviation)
    if not reach:
        return pixels
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        around = [(reach, reach) if a == axis else (0, 0) for a in range(pixels.ndim)]
        padded, size = np.pad(pixels, around, mode="edge"), pixels.shape[axis]
        pixels = sum(weight * padded.take(range(i, i + size), axis) for i, weight in enumerate(weights))
    return pixels


def sobel(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's derivatives of `pixels` (float64, H W C) to the right and downwards; edges are repeated outwards."""
    p = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = p[:-2] + 2 * p[1:-1] + p[2:]  # H W+2 C, smoothed across
    right = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return down[:, 2:] - down[:, :-2], right[2:] - right[:-2]


_EIGHTH = math.tan(math.pi / 8)


def _on_ridge(length: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool H W: where the gradient is longer than at the neighbour behind it and no shorter than at the one before it,
    of the eight neighbours those that it points from and to most nearly. Of two that are equal one remains."""
    p = np.pad(length, 1)
    height, width = length.shape

    def neighbour(dx: int, dy: int) -> np.ndarray:
        return p[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    flat, steep = np.abs(y) <= _EIGHTH * np.abs(x), np.abs(x) <= _EIGHTH * np.abs(y)
    directions = [(flat, (1, 0)), (steep, (0, 1)), (x * y > 0, (1, 1)), (x * y <= 0, (-1, 1))]
    conditions = [condition for condition, _ in directions]
    behind = np.select(conditions, [neighbour(-dx, -dy) for _, (dx, dy) in directions])
    before = np.select(conditions, [neighbour(dx, dy) for _, (dx, dy) in directions])
    return (length > behind) & (length >= before)


def _connected(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """bool H W: the strong pixels, and every weak one that a path of weak ones, by eight neighbours, joins to them."""
    weak, found = np.pad(weak, 1), np.pad(strong, 1)
    width = weak.shape[1]
    around = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    front = np.flatnonzero(found)
    while len(front):
        near = np.unique(front[:, None] + around)
        front = near[weak.flat[near] & ~found.flat[near]]
        found.flat[front] = True
    return found[1:-1, 1:-1]


def _pixels(picture: Image.Image) -> np.ndarray:
    """float64 H W 3, from 0 to 255."""
    return np.asarray(to_rgb(picture), dtype=np.float64)


def _white_on_black(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().astype(np.uint8), "L").convert("RGB")
