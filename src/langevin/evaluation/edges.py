"""How well the edges of pictures agree with the edges that were asked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError
from langevin.images.hints import canny
from langevin.images.pixels import to_pictures


class EdgeAgreement(NamedTuple):
    """Of each picture, float64 [B], from 0 to 1."""

    precision: Tensor
    """Share of the edges found that were wanted."""
    recall: Tensor
    """Share of the edges wanted that were found."""
    f1: Tensor
    """Their harmonic mean."""


def edges_of(images: Tensor) -> Tensor:
    """bool B H W: where pictures (B 3 H W in [-1, 1]) have an edge, by `canny` with its usual values."""
    found = [np.asarray(canny(picture))[..., 0] > 0 for picture in to_pictures(images)]
    return torch.from_numpy(np.stack(found))


def edge_agreement(found: Tensor, wanted: Tensor, tolerance: int = 1) -> EdgeAgreement:
    """Precision, recall and F1 of edges, bool B H W each: a pixel counts as right where the other side has one no more
    than `tolerance` pixels away, diagonally too.

    Edges should be one pixel wide, as those of `canny` are. Unlike in the benchmark of Martin et al. 2004 two pixels
    may be right by the same one. Where nothing is found, precision is 1, and where nothing is wanted, recall is.
    Raises DataError for shapes that differ.
    """
    if found.shape != wanted.shape or found.ndim != 3 or found.numel() == 0:
        raise DataError(f"two sets of edges B H W are needed, got {tuple(found.shape)} and {tuple(wanted.shape)}")
    precision = _share(found, _widened(wanted, tolerance))
    recall = _share(wanted, _widened(found, tolerance))
    total = (precision + recall).clamp(min=1e-12)  # without a right pixel the product is 0 too
    return EdgeAgreement(precision, recall, 2 * precision * recall / total)


def _widened(edges: Tensor, by: int) -> Tensor:
    grown = F.max_pool2d(edges[:, None].float(), 2 * by + 1, stride=1, padding=by)
    return grown[:, 0] > 0


def _share(edges: Tensor, near: Tensor) -> Tensor:
    """float64 [B]: the share of the edges' pixels that lie in `near`; 1 where there are none."""
    count = edges.sum((1, 2)).double()
    return torch.where(count > 0, (edges & near).sum((1, 2)).double() / count.clamp(min=1), 1.0)
