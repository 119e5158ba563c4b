"""Pictures whose pixels are numbers and not colours: depth and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor

from langevin.errors import DataError


def to_values(picture: Image.Image) -> Tensor:
    """float32 H W: the stored numbers of a grey picture of 8, 16 or 32 bits, which may be stored as colours. DataError
    for any other."""
    if picture.mode in ("RGB", "RGBA"):
        red, green, blue = (np.asarray(picture.getchannel(name)) for name in "RGB")
        if np.array_equal(red, green) and np.array_equal(red, blue):
            picture = picture.getchannel("R")
    if picture.mode not in ("L", "I", "F") and not picture.mode.startswith("I;16"):
        raise DataError(f"a picture of mode {picture.mode}: a map of values is grey, of 8, 16 or 32 bits")
    values = np.asarray(picture).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("it holds values that are not finite")
    return torch.from_numpy(values)


def depth_channel(values: Tensor, height: int, width: int) -> Tensor:
    """float32 B 1 h w of depths B 1 H W in any unit, larger is nearer: resized bicubically, then each map from -1 to 1
    (all -1 where it is the same everywhere), as the depth model of Stable Diffusion 2 sees them."""
    small = F.interpolate(values.float(), (height, width), mode="bicubic", align_corners=False)
    low, high = (f(small, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return 2 * (small - low) / (high - low).clamp(min=1e-12) - 1


def class_shares(one_hot: Tensor, height: int, width: int) -> Tensor:
    """float32 B K h w of classes B K H W, 0 or 1: which share of the cell each covers, adding up to 1."""
    return F.adaptive_avg_pool2d(one_hot, (height, width))


def to_classes(picture: Image.Image, classes: int, palette: Sequence[str] = ()) -> Tensor:
    """uint8 H W: the class of each pixel, below `classes`.

    Without a palette the picture is grey or indexed (modes L and P) and its pixels are the classes' numbers. With one,
    it may have any mode, and class i has just the colour palette[i], "#rrggbb" or a name of CSS. Raises DataError for a
    class or a colour that there is not.
    """
    if palette:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int64)
        packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
        found = np.full(packed.shape, -1, dtype=np.int64)
        for i, colour in enumerate(palette):
            red, green, blue = ImageColor.getrgb(colour)[:3]
            found[packed == (red << 16 | green << 8 | blue)] = i
        if (found < 0).any():
            raise DataError(f"it has the colour #{int(packed[found < 0][0]):06x}, which the palette has not")
    elif picture.mode in ("L", "P"):
        found = np.asarray(picture).astype(np.int64)
    else:
        raise DataError(f"a picture of mode {picture.mode}: a map of classes is grey or indexed, or give a palette")
    if int(found.max()) >= classes:
        raise DataError(f"it has the class {int(found.max())}; there are {classes}, from 0")
    return torch.from_numpy(found.astype(np.uint8))
