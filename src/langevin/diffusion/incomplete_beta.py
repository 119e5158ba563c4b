"""The inverse of the regularised incomplete beta function, in plain floats."""

from __future__ import annotations

import math

_TINY = 1e-300


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), the beta distribution's cumulative probability at x in [0, 1]; a, b > 0.

    By the continued fraction DLMF 8.17.22, evaluated with the modified Lentz method (Thompson & Barnett 1986).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on one side; DLMF 8.17.4 gives the other
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    f, c, d = 1.0, 1.0, 0.0
    for j in range(500):
        m = j // 2
        if j == 0:
            numerator = 1.0
        elif j % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + numerator * d or _TINY)
        c = 1 + numerator / c or _TINY
        f *= c * d
        if abs(1 - c * d) < 1e-15:
            break
    return math.exp(log_front) / a * (f - 1)


def inverse_incomplete_beta(p: float, a: float, b: float) -> float:
    """The x in [0, 1] at which I_x(a, b) = p, by bisection to the last bit; p in [0, 1], a, b > 0."""
    if p <= 0 or p >= 1:
        return float(p >= 1)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if incomplete_beta(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return middle
