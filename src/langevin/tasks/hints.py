"""Hints as networks see them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from langevin.errors import RequestError
from langevin.images.pixels import to_rgb
from langevin.tasks.pictures import on_grid

CELL = 8
"""Pixels of a hint along one side of a latent's cell, whatever the autoencoder: ControlNets and T2I-Adapters have it
built in."""


def hint_tensor(hint: Image.Image, width: int, height: int, factor: int, channels: int = 3) -> Tensor:
    """float32 1 C 8h 8w in [0, 1] of a hint of any mode, for latents of h x w cells of `factor` pixels.

    It is brought to the size of the picture (by Lanczos' filter, where it has another) and, where that is no multiple
    of a cell, its edges are repeated outwards as the picture's are. With cells of other than 8 pixels its pixels are
    repeated or averaged. channels: 3, or 1 for networks that see grey. RequestError for other numbers.
    """
    if channels not in (1, 3):
        raise RequestError(f"the network takes hints of {channels} channels: pictures have 3, or 1 in grey")
    picture = to_rgb(hint)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture if channels == 3 else picture.convert("L")))
    pixels = (pixels.permute(2, 0, 1) if channels == 3 else pixels[None])[None].float() / 255  # 1 C H W
    return in_cells(on_grid(pixels, factor), factor)


def in_cells(pixels: Tensor, factor: int) -> Tensor:
    """B C 8h 8w of hints B C H W whose sides are multiples of `factor`, the pixels of a latent's cell: pixels are
    repeated where those are fewer than 8, averaged where they are more."""
    if factor == CELL:
        return pixels
    h, w = pixels.shape[-2] // factor, pixels.shape[-1] // factor
    mode = "nearest" if factor < CELL else "area"
    return F.interpolate(pixels, (CELL * h, CELL * w), mode=mode)
