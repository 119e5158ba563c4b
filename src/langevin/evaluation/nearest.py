"""The nearest of many real pictures, and whether a model's pictures lie nearer to them than new real ones do."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError

_ROWS = 512


class Nearest(NamedTuple):
    """Of each query the nearest reference."""

    distances: Tensor
    """float32 [N], Euclidean."""
    places: Tensor
    """int64 [N]: which reference it is."""


def nearest(queries: Tensor, references: Tensor, *, own: Tensor | None = None) -> Nearest:
    """The nearest reference of each query, by Euclidean distance, in tiles of references.

    queries, references: vectors N D and M D; references of an integer type are converted a tile at a time. own: int64
    [N], the reference that is not to be found for each query, because it is the query itself. Raises DataError where
    widths differ or nothing is left to be found.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise DataError(f"vectors N D and M D are needed, got {tuple(queries.shape)} and {tuple(references.shape)}")
    if len(references) < (1 if own is None else 2):
        raise DataError(f"{len(references)} reference is too few to find another one")
    queries = queries.float()
    origin = references[:_ROWS].float().mean(0)
    best = torch.full((len(queries),), torch.inf)
    places = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(references), _ROWS):
        tile = references[start : start + _ROWS].float()
        found = torch.cdist(queries - origin, tile - origin, compute_mode="use_mm_for_euclid_dist")
        if own is not None:
            here = (own >= start) & (own < start + len(tile))
            found[here, own[here] - start] = torch.inf
        distance, place = found.min(1)
        nearer = distance < best
        best[nearer] = distance[nearer]
        places[nearer] = place[nearer] + start
    # Products lose small distances to rounding: that of the nearest is taken again, from differences.
    best = (queries - references[places].float()).norm(dim=1)
    return Nearest(best, places)


def pixel_vectors(pictures: Tensor, side: int = 32) -> Tensor:
    """Pixels as vectors whose Euclidean distance is the root of the mean square difference, in shares of the range.

    pictures: uint8 N 3 H W, brought to `side` x `side` by area averaging where they are larger. Returns float32 [N, D].
    """
    rows = []
    for part in pictures.split(256):
        pixels = part.float() / 255
        if pixels.shape[-1] > side:
            pixels = F.adaptive_avg_pool2d(pixels, side)
        flat = pixels.flatten(1)
        rows.append(flat / flat.shape[1] ** 0.5)
    return torch.cat(rows)


def share_below(distances: Tensor, others: Tensor, quantile: float = 0.05) -> float:
    """The share of `distances` that is below this quantile of `others`: of equal distributions, the quantile itself."""
    return float((distances < others.quantile(quantile)).float().mean())
