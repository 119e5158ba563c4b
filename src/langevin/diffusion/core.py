"""The types that samplers, guidance and models share.

The state is kept in variance-exploding coordinates, `x = x0 + sigma * eps`. A variance-preserving model
`z = sqrt(abar) x0 + sqrt(1 - abar) eps` is the same model with `sigma = sqrt((1 - abar) / abar)` and
`x = z / sqrt(abar)` (Song et al. 2021, "Score-Based Generative Modeling through SDEs", and Karras et al. 2022,
"Elucidating the Design Space", appendix B).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """What a denoiser says about one noised batch."""

    x0: Tensor
    """Expected clean sample given x, B C H W, in the units of the data."""

    variance_fraction: Tensor | None = None
    """Learned reverse variance, B C H W in [0, 1]: 0 is the lower bound (posterior), 1 the upper (beta);
    Nichol & Dhariwal 2021, equation 15. None where the network does not learn it."""


class Step(NamedTuple):
    """What a sampler yields after each interval of the grid."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """Which interval was done, from 0."""

    sigma: float
    """The noise level that x now has: the interval's lower end."""

    x: Tensor
    """The state, B C H W, variance-exploding coordinates."""

    x0: Tensor
    """The last estimate of the clean sample, B C H W: for previews."""


Denoiser = Callable[[Tensor, float], Estimate]
"""D(x, sigma): x is B C H W in variance-exploding coordinates, sigma one float for the whole batch."""
