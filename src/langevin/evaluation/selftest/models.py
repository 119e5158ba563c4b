"""Networks that are right by construction: the raw output of each prediction type for Gaussian data."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.evaluation.selftest.problems import Gaussian
from langevin.model.diffusion_model import DiffusionModel

SIGMA_DATA = 0.5


class ClosedFormNetwork(nn.Module):
    """F(z, t), each written down from the definition of what the network of that type is trained to give.

    The coefficients of `Prediction` are not used: they are what is tested.
    """

    def __init__(self, prediction: Prediction, schedule: NoiseSchedule, data: Gaussian) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)
        self.prediction = prediction
        self.schedule = schedule
        self.data = data

    def forward(self, z: Tensor, t: Tensor, **_: object) -> Tensor:
        """z: B C H W; t: float32 [B], the same for the whole batch."""
        time = float(t[0])
        match self.prediction:
            case Prediction.EPSILON | Prediction.X0 | Prediction.V:
                sigma = float(self.schedule.sigma(time))
                abar = 1 / (1 + sigma**2)
                x0 = self.data.denoise(z / math.sqrt(abar), sigma).x0
                epsilon = (z - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
                if self.prediction is Prediction.EPSILON:
                    return epsilon
                if self.prediction is Prediction.X0:
                    return x0
                return math.sqrt(abar) * epsilon - math.sqrt(1 - abar) * x0
            case Prediction.FLOW:
                # z = (1 - u) x0 + u eps with u = t / 1000; the velocity is eps - x0.
                u = time / 1000
                x0 = self.data.denoise(z / (1 - u), u / (1 - u)).x0
                return (z - (1 - u) * x0) / u - x0
            case Prediction.EDM:
                # z = x / sqrt(sigma^2 + sigma_data^2), t = log(sigma) / 4; F is unit variance by construction.
                sigma = float(torch.exp(torch.tensor(4.0 * time, dtype=torch.float64)))  # infinite for a wrong time
                total = math.hypot(sigma, SIGMA_DATA)
                x = z * total
                x0 = self.data.denoise(x, sigma).x0
                return (x0 - (SIGMA_DATA / total) ** 2 * x) * total / (sigma * SIGMA_DATA)
            case _:
                assert_never(self.prediction)


def closed_form_model(prediction: Prediction) -> DiffusionModel:
    """A diffusion model of the given type for the Gaussian problem, on Stable Diffusion's schedule, in float64."""
    schedule = NoiseSchedule.scaled_linear()
    network = ClosedFormNetwork(prediction, schedule, Gaussian())
    return DiffusionModel(network, schedule, prediction, sigma_data=SIGMA_DATA)
