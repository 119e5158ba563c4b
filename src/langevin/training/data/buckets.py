"""Aspect-ratio buckets: sizes of nearly equal area, so that pictures keep their proportions in batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pydantic import Field

from langevin.training.config import Config


class BucketConfig(Config):
    """Which sizes there are beside the square."""

    grid: int = Field(8, ge=1, le=256)
    """Every side is a multiple of it. It divides `data.size`, and is a multiple of the autoencoder's factor."""
    largest_ratio: float = Field(2.0, ge=1, le=16)
    """Of the longer side to the shorter; a picture that is longer goes to the last bucket."""


def bucket_sizes(size: int, config: BucketConfig) -> tuple[tuple[int, int], ...]:
    """(width, height) of each bucket, widths ascending; the square of `size` is one of them.

    For each shorter side s on the grid, from `size` downwards, the longer one is the largest on the grid with
    s x l <= size^2. So no bucket has more pixels than the square, and none fewer than 1 - grid / size of its pixels:
    the longer side misses size^2 / s by less than the grid, the area by less than s x grid <= size x grid.
    """
    found = {(size, size)}
    for short in range(size - config.grid, 0, -config.grid):
        long = size * size // short // config.grid * config.grid
        if long > config.largest_ratio * short:
            break
        found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def nearest_bucket(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> int:
    """Which of `sizes` has the ratio of sides nearest to the picture's, by the factor between the two; the first of
    equals. Computed in fractions: the same everywhere."""

    def factor(size: tuple[int, int]) -> Fraction:
        a, b = width * size[1], height * size[0]
        return Fraction(max(a, b), min(a, b))

    return min(range(len(sizes)), key=lambda i: factor(sizes[i]))
