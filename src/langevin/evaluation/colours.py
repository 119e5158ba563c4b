"""Which colours a picture on white shows, by the names that people give them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from langevin.errors import DataError

NAMES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
"""The basic colour terms (Berlin & Kay 1969), in the order of the shares."""
INK = 24
"""A pixel is drawn upon if one of its channels is darker than white by more than this, of 255."""
LEAST_INK = 0.005
"""Share of the picture that has to be drawn upon before it has a colour at all."""
PRESENT = 0.4
"""A picture shows a colour if it covers this share of what is drawn upon."""

_HUES: Mapping[str, tuple[float, float]] = {
    "red": (10, 40),
    "orange": (40, 73),
    "yellow": (73, 114),
    "green": (114, 195),
    "blue": (195, 285),
    "purple": (285, 328),
    "pink": (328, 370),
}
"""Sectors of OKLCh's hue in degrees, from one border to the next: they close the circle."""


def oklch(pictures: Tensor) -> Tensor:
    """Lightness in [0, 1], chroma and hue in degrees [0, 360) of sRGB pixels (Ottosson 2020, "A perceptual color space
    for image processing"). pictures: uint8 N 3 H W. Returns float32 N 3 H W."""
    table = torch.arange(256, dtype=torch.float32) / 255
    table = torch.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    linear = table[pictures.long()]
    cones = torch.einsum("ij,njhw->nihw", torch.tensor(_CONES), linear).clamp(min=0) ** (1 / 3)
    lightness, a, b = torch.einsum("ij,njhw->nihw", torch.tensor(_LAB), cones).unbind(1)
    return torch.stack([lightness, torch.hypot(a, b), torch.rad2deg(torch.atan2(b, a)) % 360], 1)


_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def name_pixels(pictures: Tensor) -> Tensor:
    """The place in `NAMES` of each pixel's colour: int64 N H W of uint8 N 3 H W.

    Hue decides among strong colours; pale reds are pink, dark oranges and yellows brown, and what has hardly any chroma
    is black, grey or white by its lightness.
    """
    lightness, chroma, hue = oklch(pictures).unbind(1)
    named = torch.full(lightness.shape, NAMES.index("pink"))  # hues that go on beyond 360
    for name, (low, high) in _HUES.items():
        named[(hue >= low) & (hue < high)] = NAMES.index(name)

    def call(where: Tensor, name: str) -> None:
        named[where] = NAMES.index(name)

    reddish = (hue >= 340) | (hue < 40)
    call(reddish & (lightness < 0.66), "red")
    call(reddish & (lightness > 0.74), "pink")
    call((hue >= 33) & (hue < 40) & (lightness >= 0.68), "orange")
    call(reddish & (chroma < 0.1) & (lightness < 0.65), "brown")
    call((hue >= 25) & (hue < 40) & (chroma < 0.13) & (lightness < 0.68), "brown")
    call((hue >= 40) & (hue < 114) & (lightness < 0.63), "brown")
    grey = chroma < 0.045
    call(grey, "grey")
    call((grey & (lightness < 0.42)) | (lightness < 0.22), "black")
    call(grey & (lightness > 0.95), "white")
    return named


def colour_shares(pictures: Tensor) -> Tensor:
    """How much of what is drawn upon has each colour: float32 [N, len(NAMES)], rows that sum to 1, or to 0 where hardly
    anything is drawn.

    pictures: uint8 N 3 H W on white; the white of the background is not counted, pale parts of things are. Raises
    DataError for another shape or type.
    """
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise DataError(f"colours are measured of uint8 N 3 H W, got {pictures.dtype} {tuple(pictures.shape)}")
    rows = []
    for part in pictures.split(64):
        ink = part.amin(1) < 255 - INK  # N H W
        named = name_pixels(part)
        counts = torch.stack([(ink & (named == i)).sum((1, 2)) for i in range(len(NAMES))], 1).float()
        drawn = counts.sum(1, keepdim=True)
        rows.append(torch.where(drawn >= LEAST_INK * ink[0].numel(), counts / drawn.clamp(min=1), 0.0))
    return torch.cat(rows) if rows else torch.zeros(0, len(NAMES))


def shows(pictures: Tensor, colours: list[str], share: float = PRESENT) -> Tensor:
    """bool [N]: whether each picture shows the colour of its place, one of `NAMES`, in at least `share` of its ink."""
    places = torch.tensor([NAMES.index(colour) for colour in colours])
    return colour_shares(pictures)[torch.arange(len(places)), places] >= share
