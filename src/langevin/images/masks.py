"""Masks: which pixels of a picture may change. 8-bit grey arrays H W, 255 (white) where they may and 0 where not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from langevin.errors import RequestError
from langevin.images.pixels import to_rgb


def mask_of_picture(picture: Image.Image) -> np.ndarray:
    """A mask that was drawn: the grey of a picture of any mode. What is transparent in it is black."""
    return np.array(to_rgb(picture, background=(0, 0, 0)).convert("L"))


def mask_of_alpha(picture: Image.Image) -> np.ndarray:
    """White where a picture is transparent. RequestError where nothing in it can be."""
    if picture.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in picture.info:
        raise RequestError(f"the picture has no transparent parts (mode {picture.mode}): give a mask, box or polygon")
    return 255 - np.array(picture.convert("RGBA").getchannel("A"))


def mask_of_box(width: int, height: int, box: Sequence[int]) -> np.ndarray:
    """White from the columns LEFT to RIGHT and the rows TOP to BOTTOM, each without the last."""
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise RequestError(
            f"box {left},{top},{right},{bottom} is empty: give LEFT,TOP,RIGHT,BOTTOM, each first one less"
        )
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def mask_of_polygon(width: int, height: int, corners: Sequence[int]) -> np.ndarray:
    """White inside a polygon and on its border; corners: x1, y1, x2, y2 ... in pixels."""
    layer = Image.new("L", (width, height))
    ImageDraw.Draw(layer).polygon(list(zip(corners[::2], corners[1::2], strict=True)), fill=255)
    return np.array(layer)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask, larger by so many pixels to every side (the brightest of a square); smaller where `pixels` is below 0.
    What lies outside the picture neither lets it grow nor shrink."""
    reach = abs(pixels)
    if not reach:
        return mask
    values = _tensor(mask if pixels > 0 else 255 - mask)
    values = F.max_pool2d(values, (1, 2 * reach + 1), 1, (0, reach))
    values = F.max_pool2d(values, (2 * reach + 1, 1), 1, (reach, 0))[0, 0]
    found = values.numpy().astype(np.uint8)
    return found if pixels > 0 else 255 - found


def feathered(inside: np.ndarray, pixels: int) -> np.ndarray:
    """float64 H W: 0 outside, and inside a weight that rises from the border to 1 after so many pixels.

    inside: bool H W. The k-th pixel from the border has the weight k / (pixels + 1); distances are those of a king on a
    chessboard, and the picture's own edge is no border.
    """
    depth = inside.astype(np.float64)
    outside = _tensor(~inside)
    for _ in range(pixels):
        outside = F.max_pool2d(outside, 3, 1, 1)
        depth += outside[0, 0].numpy() == 0
    return depth / (pixels + 1)


def around(mask: np.ndarray, padding: int, proportions: float) -> tuple[int, int, int, int]:
    """LEFT, TOP, RIGHT, BOTTOM of the part of the picture that holds the mask and `padding` pixels about it.

    It is widened to the proportions (width / height) as far as the picture reaches. The mask must not be empty.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, right = max(0, int(columns[0]) - padding), min(width, int(columns[-1]) + 1 + padding)
    top, bottom = max(0, int(rows[0]) - padding), min(height, int(rows[-1]) + 1 + padding)
    left, right = _widened(left, right, round((bottom - top) * proportions), width)
    top, bottom = _widened(top, bottom, round((right - left) / proportions), height)
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """An interval about the middle of the first, at least as long as it, within 0 ... limit."""
    length = min(max(length, high - low), limit)
    start = min(max(0, low - (length - (high - low)) // 2), limit - length)
    return start, start + length


def _tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
