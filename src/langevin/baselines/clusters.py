"""The colours that an ImageGPT's pixels are rounded to (Chen et al. 2020, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin.errors import DataError


def k_means(values: Tensor, weights: Tensor, count: int, *, generator: torch.Generator, rounds: int = 50) -> Tensor:
    """Centres of `count` clusters, float64 [count, C], by Lloyd's algorithm (1982) from k-means++ starts.

    values: float [N, C], all different; weights: [N], how often each occurs. Starts are drawn in proportion to weight
    and squared distance from those drawn before (Arthur & Vassilvitskii 2007). Sorted by their channels' sum. Raises
    DataError where there are fewer values than clusters.
    """
    if len(values) < count:
        raise DataError(f"the pictures have {len(values)} different colours, fewer than {count} clusters: set fewer")
    points, mass = values.double(), weights.double()
    first = torch.multinomial(mass, 1, generator=generator)
    centres = points[first]
    nearest = (points - centres[0]).square().sum(1)
    while len(centres) < count:
        chosen = torch.multinomial(mass * nearest, 1, generator=generator)
        centres = torch.cat([centres, points[chosen]])
        nearest = torch.minimum(nearest, (points - points[chosen]).square().sum(1))
    for _ in range(rounds):
        owner = assign(points, centres)
        total = torch.zeros(count, dtype=torch.float64).index_add(0, owner, mass)
        summed = torch.zeros_like(centres).index_add(0, owner, points * mass[:, None])
        moved = torch.where(total[:, None] > 0, summed / total[:, None].clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres[centres.sum(1).argsort(stable=True)]


def assign(values: Tensor, centres: Tensor) -> Tensor:
    """int64 [N]: the nearest centre, the first of equals, of each of `values` [N, C]."""
    parts = values.split(65536)
    return torch.cat([(part[:, None] - centres.to(part)).square().sum(2).argmin(1) for part in parts])


def colours(pictures: Tensor, channels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The different colours of uint8 pictures N 3 H W, in [-1, 1], float64 [M, C], and how often each occurs, [M].

    Of more than 4096 pictures, 4096 are drawn.
    """
    if len(pictures) > 4096:
        pictures = pictures[torch.randperm(len(pictures), generator=generator)[:4096]]
    found, counts = pictures[:, :channels].movedim(1, -1).flatten(0, -2).unique(dim=0, return_counts=True)
    return found.double() / 127.5 - 1, counts
