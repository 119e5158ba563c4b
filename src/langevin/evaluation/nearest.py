"""The nearest of many real pictures, and whether a model's pictures lie nearer to them than new real ones do."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError

NEIGHBOURS = 50
"""Of the relative distance."""
_ROWS = 512


class Nearest(NamedTuple):
    """Of each query the nearest reference."""

    distances: Tensor
    """float32 [N], Euclidean."""
    places: Tensor
    """int64 [N]: which reference it is."""
    relative: Tensor
    """float32 [N], in [0, 1]: the distance divided by the mean of those to the `NEIGHBOURS` nearest. Small where one
    reference is much nearer than all others, as of a picture that is remembered (Carlini et al. 2023, section 4.2)."""


def nearest(queries: Tensor, references: Tensor, *, own: Tensor | None = None) -> Nearest:
    """The nearest reference of each query, by Euclidean distance, in tiles of references.

    queries, references: vectors N D and M D; references of an integer type are converted a tile at a time. own: int64
    [N], the reference that is not to be found for each query, because it is the query itself. Raises DataError where
    widths differ or nothing is left to be found.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise DataError(f"vectors N D and M D are needed, got {tuple(queries.shape)} and {tuple(references.shape)}")
    left = len(references) - (0 if own is None else 1)
    if left < 1:
        raise DataError(f"{len(references)} reference is too few to find another one")
    queries = queries.float()
    origin = references[:_ROWS].float().mean(0)
    best = torch.full((len(queries), 0), torch.inf)
    places = torch.zeros(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(references), _ROWS):
        tile = references[start : start + _ROWS].float()
        found = torch.cdist(queries - origin, tile - origin, compute_mode="use_mm_for_euclid_dist")
        if own is not None:
            here = (own >= start) & (own < start + len(tile))
            found[here, own[here] - start] = torch.inf
        among = torch.cat([best, found], 1)
        named = torch.cat([places, torch.arange(start, start + len(tile)).expand(len(queries), -1)], 1)
        best, order = among.topk(min(NEIGHBOURS, left, among.shape[1]), largest=False)
        places = named.gather(1, order)
    first = places[:, 0]
    # Products lose small distances to rounding: that of the nearest is taken again, from differences.
    distances = (queries - references[first].float()).norm(dim=1)
    return Nearest(distances, first, (distances / best.mean(1).clamp(min=1e-12)).clamp(max=1))


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


def share_nearer(distances: Tensor, others: Tensor) -> float:
    """How often one of `distances` is less than one of `others`, over all pairs, ties counting half: 0.5 for equal
    distributions (Mann & Whitney 1947)."""
    less = (distances[:, None] < others).double().mean()
    equal = (distances[:, None] == others).double().mean()
    return float(less + equal / 2)
