"""What a picture of shapes shows, from its pixels alone: the judge of captions on the shapes data."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from PIL import Image

from langevin.images.patches import label_patches
from langevin.images.pixels import to_rgb
from langevin.training.data.shapes import COLOURS, SHAPES, SIZES, Scene, Thing, coverage

INK = 48
"""A pixel is drawn upon if one of its channels is darker than white by more than this."""
SPECK = 0.004
"""Patches of less than this share of the picture are specks (a small triangle has 0.0128)."""
SPECKS = 0.01
"""Share of the picture that specks may make up in all before it is called unclear."""
COLOUR_DISTANCE = 70.0
"""Largest Euclidean distance of a thing's colour from the nearest of `COLOURS` (two of them are at least 115 apart)."""
OVERLAP = 0.7
"""Least overlap (intersection over union, of coverage) of a thing with the best shape of its area and centre."""
LEAD = 0.05
"""How much the best shape's overlap has to be above that of the next."""
RESIDUAL = 35.0
"""Largest mean difference of a thing's pixels from that shape in its one colour, of 255."""

_AREA = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}
"""Of the box."""
_CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3, "cross": 0.0}
"""How far below the box's centre, in half widths."""


class Finding(StrEnum):
    SCENE = "scene"
    NOTHING = "nothing"
    """Blank, but for specks."""
    UNCLEAR = "unclear"
    """Something, but not one or two plain things; the reason is given."""


class Measurement(NamedTuple):
    finding: Finding
    scene: Scene | None = None
    """In canonical form: compare with `scene.canonical`."""
    reason: str = ""


class _Seen(NamedTuple):
    thing: Thing
    x: float
    y: float


def measure_scene(picture: Image.Image) -> Measurement:
    """The scene that a picture shows, in canonical form, or why there is none to be made out.

    Patches of ink are taken apart; of each, the median colour of its full pixels is compared with `COLOURS`, and its
    coverage with that of each shape of the same area and centre. The relation is the longer of the two distances
    between the centres, and unclear where the shorter one is more than 0.7 of it. Below 64 pixels
    small things may be too coarse to tell.
    """
    pixels = np.asarray(to_rgb(picture), dtype=np.float64)  # H W 3
    height, width = pixels.shape[:2]
    if width != height or not 32 <= width <= 256:
        return _unclear(f"{width} x {height} pixels: a square of 32 to 256 is measured")
    ink = (255 - pixels).max(2) > INK
    patches = _patches(ink)
    big = [p for p in patches if len(p[0]) >= SPECK * ink.size]
    specks = int(ink.sum()) - sum(len(p[0]) for p in big)
    if specks > SPECKS * ink.size:
        return _unclear(f"{specks} pixels of specks")
    if not big:
        return Measurement(Finding.NOTHING)
    if len(big) > 2:
        return _unclear(f"{len(big)} things")
    seen: list[_Seen] = []
    for patch in big:
        thing = _recognise(pixels, patch)
        if isinstance(thing, str):
            return _unclear(thing)
        seen.append(thing)
    return _related(seen)


def _unclear(reason: str) -> Measurement:
    return Measurement(Finding.UNCLEAR, reason=reason)


def _patches(ink: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of each set of pixels that touch one another, sides and corners."""
    labels = label_patches(ink)
    patches = []
    for i in range(1, int(labels.max()) + 1):
        rows, columns = np.nonzero(labels == i)
        patches.append((rows, columns))
    return sorted(patches, key=lambda p: (int(p[0].min()), int(p[1].min())))


def _recognise(pixels: np.ndarray, patch: tuple[np.ndarray, np.ndarray]) -> _Seen | str:
    """The thing that a patch is, or why it is none."""
    width = pixels.shape[1]
    darkness = np.linalg.norm(255 - pixels[patch], axis=1)
    colour = np.median(pixels[patch][darkness >= 0.8 * np.quantile(darkness, 0.9)], axis=0)
    distances = {name: float(np.linalg.norm(colour - value)) for name, value in COLOURS.items()}
    name = min(distances, key=distances.__getitem__)
    if distances[name] > COLOUR_DISTANCE:
        return f"a colour of {np.rint(colour).astype(int).tolist()}"
    # Pixels at the edge hold less ink than INK asks for: the patch is taken with a rim of two pixels.
    rows, columns = patch
    top, bottom = max(0, rows.min() - 2), min(width, rows.max() + 3)
    start, end = max(0, columns.min() - 2), min(width, columns.max() + 3)
    mine = np.zeros(pixels.shape[:2], dtype=bool)
    for i in range(-2, 3):
        for j in range(-2, 3):
            mine[np.clip(rows + i, 0, width - 1), np.clip(columns + j, 0, width - 1)] = True
    region = np.where(mine[..., None], pixels, 255.0)[top:bottom, start:end]  # h w 3
    covered = np.clip((255 - region) @ (255 - colour) / ((255 - colour) @ (255 - colour)), 0, 1)  # h w
    area = covered.sum()
    y, x = ((covered.sum(1 - a) * (np.arange(covered.shape[a]) + 0.5)).sum() / area for a in (0, 1))
    fits: dict[str, tuple[float, float, np.ndarray]] = {}
    for shape in SHAPES:
        radius = np.sqrt(area / _AREA[shape]) / 2
        ideal = coverage(shape, x, y - _CENTROID[shape] * radius, radius, covered.shape[1], covered.shape[0])
        fits[shape] = float(np.minimum(ideal, covered).sum() / np.maximum(ideal, covered).sum()), radius, ideal
    shape, other = sorted(SHAPES, key=lambda s: fits[s][0], reverse=True)[:2]
    overlap, radius, ideal = fits[shape]
    if overlap - fits[other][0] < LEAD:
        return f"a {shape} or a {other}: overlap {overlap:.2f} and {fits[other][0]:.2f}"
    if overlap < OVERLAP:
        return f"no known shape: overlap {overlap:.2f} with a {shape}"
    residual = np.abs(255 * (1 - ideal[..., None]) + colour * ideal[..., None] - region).mean(2)
    if (mean := float(residual[ideal > 0].mean())) > RESIDUAL:
        return f"not of one colour: {mean:.0f} of 255 from a {name} {shape}"
    size = _size(2 * radius / width)
    if size is None:
        return f"a {shape} of {2 * radius / width:.2f} of the picture's width"
    return _Seen(Thing(size, name, shape), start + x, top + y - _CENTROID[shape] * radius)


def _size(share: float) -> str | None:
    """The nearest of `SIZES`, unless it is more than 30% off."""
    name = min(SIZES, key=lambda n: abs(SIZES[n] - share))
    return name if abs(share / SIZES[name] - 1) <= 0.3 else None


def _related(seen: list[_Seen]) -> Measurement:
    if len(seen) == 1:
        return Measurement(Finding.SCENE, Scene((seen[0].thing,)))
    first, second = seen
    if first.thing == second.thing:
        return Measurement(Finding.SCENE, Scene((first.thing, second.thing)))
    across, down = second.x - first.x, second.y - first.y
    if min(abs(across), abs(down)) > 0.7 * max(abs(across), abs(down)):
        return _unclear(f"neither beside nor above: {across:.0f} across, {down:.0f} down")
    if abs(across) > abs(down):
        relation = "left of" if across > 0 else "right of"
    else:
        relation = "above" if down > 0 else "below"
    return Measurement(Finding.SCENE, Scene((first.thing, second.thing), relation).canonical)
