"""Contact sheets: many pictures in one."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image
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


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write a contact sheet as PNG."""
    sheet = contact_sheet(images, columns)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
