"""Pictures of any size to squares of one size, by rules that are exact to the pixel."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from PIL import Image


class Fit(StrEnum):
    """How a picture that is not square becomes one. For a square picture all three are the same."""

    STRETCH = "stretch"
    """Width and height are resized each by its own factor: nothing is lost, proportions change."""
    CROP = "crop"
    """The centre square, of the shorter side: the left (upper) margin that is cut off is (long - short) // 2."""
    PAD = "pad"
    """The longer side becomes the size, the shorter one is rounded to the nearest pixel (halves upwards, at least 1);
    the picture lies in the middle on white, the left (upper) margin being half of the rest, rounded down."""


def fit_square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """An RGB picture of `size` x `size` pixels."""
    width, height = image.size
    match fit:
        case Fit.STRETCH:
            return resize(image, size, size)
        case Fit.CROP:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            square = image if width == height else image.crop((left, top, left + side, top + side))
            return resize(square, size, size)
        case Fit.PAD:
            # Resized before it is padded: a picture of 1 x 60,000,000 must not become a square of that side.
            side = max(width, height)
            scaled = resize(image, _scaled(width, size, side), _scaled(height, size, side))
            if scaled.size == (size, size):
                return scaled
            square = Image.new("RGB", (size, size), (255, 255, 255))
            square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
            return square
        case _:
            assert_never(fit)


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Area averaging where both sides are whole multiples of the new ones, else Lanczos; unchanged at its own size."""
    if image.size == (width, height):
        return image
    even = image.width % width == 0 and image.height % height == 0
    return image.resize((width, height), Image.Resampling.BOX if even else Image.Resampling.LANCZOS)


def _scaled(length: int, size: int, side: int) -> int:
    return max(1, (2 * length * size + side) // (2 * side))
