"""How many separate things a picture on white shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from langevin.errors import DataError
from langevin.images.patches import label_patches

INK = 40
"""A pixel is drawn upon if one of its channels is darker than white by more than this, of 255."""
LEAST = 0.25
"""A patch is a thing if its area is at least this share of the largest patch's: a spark beside a rocket is none."""
SMALLEST = 0.004
"""Share of the picture that a thing covers at least."""


def count_things(pictures: Tensor) -> Tensor:
    """The number of patches of ink that are things, int64 [N].

    pictures: uint8 N 3 H W on white. Things that touch count as one: it is separate things that are counted. Raises
    DataError for another shape or type.
    """
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise DataError(f"things are counted in uint8 N 3 H W, got {pictures.dtype} {tuple(pictures.shape)}")
    drawn = (pictures.amin(1) < 255 - INK).numpy()  # N H W
    counts = []
    for mask in drawn:
        areas = np.bincount(label_patches(mask).ravel())[1:]
        least = max(LEAST * areas.max(initial=0), SMALLEST * mask.size)
        counts.append(int((areas >= least).sum()))
    return torch.tensor(counts, dtype=torch.int64)


def side_by_side(pictures: Tensor) -> Tensor:
    """Each picture twice, at half its size, left and right on white: what "two of it" looks like at its plainest.

    pictures: uint8 N 3 H W, H and W multiples of 4. Returns uint8 N 3 H W. For trying `count_things` on real pictures.
    """
    height, width = pictures.shape[-2:]
    if height % 4 or width % 4:
        raise DataError(f"pictures of {width} x {height} pixels cannot be halved and centred: give multiples of 4")
    small = torch.nn.functional.avg_pool2d(pictures.float(), 2).round().to(torch.uint8)
    out = torch.full_like(pictures, 255)
    out[..., height // 4 : height // 4 + height // 2, :] = small.repeat(1, 1, 1, 2)
    return out
