"""Pictures of any size to one size, by rules that are exact to the pixel."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from PIL import Image


class Fit(StrEnum):
    """How a picture becomes one of other proportions. Where it has them already all three are the same."""

    STRETCH = "stretch"
    """Width and height are resized each by its own factor: nothing is lost, proportions change."""
    CROP = "crop"
    """The largest part in the middle that has the proportions, its cut side rounded to the nearest pixel (halves
    upwards, at least 1): the left (upper) margin that is cut off is half of the rest, rounded down."""
    PAD = "pad"
    """Resized until it fits inside, the side that does not fill the size rounded to the nearest pixel (halves upwards,
    at least 1); the picture lies in the middle on white, the left (upper) margin being half of the rest, rounded
    down."""


def fit_to(image: Image.Image, width: int, height: int, fit: Fit) -> Image.Image:
    """An RGB picture of `width` x `height` pixels."""
    w, h = image.size
    match fit:
        case Fit.STRETCH:
            return resize(image, width, height)
        case Fit.CROP:
            cut_w, cut_h = min(w, _scaled(h, width, height)), min(h, _scaled(w, height, width))
            left, top = (w - cut_w) // 2, (h - cut_h) // 2
            part = image if (cut_w, cut_h) == (w, h) else image.crop((left, top, left + cut_w, top + cut_h))
            return resize(part, width, height)
        case Fit.PAD:
            # Resized before it is padded: a picture of 1 x 60,000,000 must not become a square of that side.
            scaled = resize(image, min(width, _scaled(w, height, h)), min(height, _scaled(h, width, w)))
            if scaled.size == (width, height):
                return scaled
            whole = Image.new("RGB", (width, height), (255, 255, 255))
            whole.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2))
            return whole
        case _:
            assert_never(fit)


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Area averaging where both sides are whole multiples of the new ones, else Lanczos; unchanged at its own size."""
    if image.size == (width, height):
        return image
    even = image.width % width == 0 and image.height % height == 0
    return image.resize((width, height), Image.Resampling.BOX if even else Image.Resampling.LANCZOS)


def _scaled(length: int, to: int, of: int) -> int:
    """`length` times `to` / `of`, rounded to the nearest, halves upwards, at least 1."""
    return max(1, (2 * length * to + of) // (2 * of))
