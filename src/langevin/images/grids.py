"""Contact sheets: many pictures in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from langevin.checkpoints.atomic import atomic_write
from langevin.images.pixels import to_pictures


def contact_sheet(images: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """`images` (B 3 H W in [-1, 1]) row by row on light grey, `gap` pixels between them."""
    pictures = to_pictures(images)
    width, height = pictures[0].size
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (224, 224, 224))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def labelled_sheet(
    images: Tensor, labels: Sequence[str], columns: int, *, side: int | None = None, gap: int = 4
) -> Image.Image:
    """`images` (B 3 H W in [-1, 1]) row by row on white, each with its label below, on two lines at most.

    side: width and height in pixels at which larger ones are shown, and the least width of a column. Words that do not
    fit are cut off.
    """
    pictures = to_pictures(images)
    if side is not None and max(pictures[0].size) > side:
        pictures = [picture.resize((side, side), Image.Resampling.LANCZOS) for picture in pictures]
    height = pictures[0].height
    width = max(pictures[0].width, side or 0)
    font = ImageFont.load_default(size=11)
    line = 13
    below = 2 * line + 2 * gap
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + below) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(i, columns)
        left, top = gap + column * (width + gap), gap + row * (height + below)
        sheet.paste(picture, (left + (width - picture.width) // 2, top))
        for k, text in enumerate(_lines(label, width, font)):
            draw.text((left, top + height + 1 + k * line), text, fill=(60, 60, 60), font=font)
    return sheet


def _lines(label: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Two lines at most, of whole words where that is possible."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    shown = []
    for text in lines[:2]:
        while text and font.getlength(text) > width:
            text = text[:-1]
        shown.append(text)
    return shown


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, as small as it goes without a change."""
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write a contact sheet as PNG."""
    sheet = contact_sheet(images, columns)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
