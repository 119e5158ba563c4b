"""What a network predicts, as rows of one table of coefficients."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, assert_never

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """D(x, sigma) = c_skip x + c_out F(c_in x), each float64 and of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Prediction(StrEnum):
    """What the raw output F of a network means.

    One training target serves all of them: `F* = (x0 - c_skip x) / c_out`. With `x = x0 + sigma eps` it is eps, x0,
    `v = sqrt(abar) eps - sqrt(1 - abar) x0` (Salimans & Ho 2022), `eps - x0` (rectified flow, Liu et al. 2023),
    or EDM's preconditioned target (Karras et al. 2022, table 1).
    """

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"
    FLOW = "flow"
    EDM = "edm"

    def coefficients(self, sigma: Tensor, sigma_data: float = 0.5) -> Coefficients:
        """The row of the table at `sigma` (float64, any shape, > 0).

        `c_in` brings x to the coordinates that the network was trained in: `1 / sqrt(1 + sigma^2)` is sqrt(abar) of
        the variance-preserving form, `1 / (1 + sigma)` is `1 - t` of the flow form with `t = sigma / (1 + sigma)`.
        `sigma_data` is the standard deviation of the data, used by EDM alone.
        """
        s = sigma.to(torch.float64)
        one = torch.ones_like(s)
        vp = 1 / torch.sqrt(1 + s * s)
        match self:
            case Prediction.EPSILON:
                return Coefficients(one, -s, vp)
            case Prediction.X0:
                return Coefficients(0 * s, one, vp)
            case Prediction.V:
                return Coefficients(vp * vp, -s * vp, vp)
            case Prediction.FLOW:
                return Coefficients(1 / (1 + s), -s / (1 + s), 1 / (1 + s))
            case Prediction.EDM:
                total = s * s + sigma_data**2
                return Coefficients(sigma_data**2 / total, s * sigma_data / total.sqrt(), 1 / total.sqrt())
            case _:
                assert_never(self)
