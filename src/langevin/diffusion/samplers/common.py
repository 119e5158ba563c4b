"""What the samplers share: the walk over a grid and the two moves that every formula is made of."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor


def intervals(sigmas: Tensor) -> list[tuple[int, float, float]]:
    """(index, sigma, next sigma) of every interval, as Python floats, which are float64.

    Raises ValueError where a level that a step starts from is not positive and finite, or equals the next one.
    """
    levels: list[float] = sigmas.tolist()
    if len(levels) < 2:
        raise ValueError(f"a grid of {len(levels)} levels has no interval; at least 2 are needed")
    for s in levels[:-1]:
        if not 0 < s < math.inf:
            raise ValueError(f"a step cannot start from sigma {s}; all levels but the last must be positive and finite")
    for s, s1 in pairwise(levels):
        if s == s1 or not 0 <= s1 < math.inf:
            raise ValueError(f"a step cannot go from sigma {s} to {s1}; levels must differ and be at least 0")
    return [(i, s, s1) for i, (s, s1) in enumerate(pairwise(levels))]


def toward(x0: Tensor, x: Tensor, ratio: float) -> Tensor:
    """`x0 + ratio (x - x0)`, B C H W: with ratio = s1 / s the exact solution from s to s1 for a constant x0.

    It is Euler's step in sigma, DDIM's with eta = 0, and DPM-Solver++'s first-order step, whose exp(-h) is s1 / s.
    A ratio of 0 gives x0 itself, bit for bit.
    """
    return torch.lerp(x0, x, ratio)


def ancestral(s: float, s1: float, eta: float) -> tuple[float, float]:
    """(down, up): fall to `down` and add noise of deviation `up`, where down^2 + up^2 = s1^2.

    eta = 1 gives up the variance of the posterior q(x_s1 | x_s, x0), eta = 0 none (Song et al. 2021, equation 16, in
    variance-exploding coordinates). `up` never exceeds s1.
    """
    if s1 == 0:
        return 0.0, 0.0
    up = min(s1, eta * s1 * math.sqrt((s - s1) * (s + s1)) / s)
    return math.sqrt((s1 - up) * (s1 + up)), up
