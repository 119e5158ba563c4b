"""Consistency functions: from any point of a probability-flow trajectory to its end at the smallest noise level.

In variance-exploding coordinates the trajectory is `dx/dsigma = (x - D(x, sigma)) / sigma`, and the consistency
function f is constant along it: `f(x, sigma) = f(x', sigma')` for two points of one trajectory, and `f(x, sigma_min) =
x` (Song et al. 2023, "Consistency Models", section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from langevin.diffusion.schedule import NoiseSchedule

SIGMA_DATA = 0.5
TIME_SCALE = 10.0
"""The numbers of Luo et al. 2023 (in their code; the paper leaves them open)."""

PerImage = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma): x is B C H W in variance-exploding coordinates, sigma float64 [B]; the estimate of x0, B C H W."""


class Boundary(NamedTuple):
    """f(x, sigma) = c_skip x + c_out D(x, sigma), each float64 and of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor


def boundary(schedule: NoiseSchedule, sigma: Tensor) -> Boundary:
    """What makes `f(x, sigma_min) = x` whatever the network says: `c_skip = d^2 / (T^2 + d^2)`, `c_out = T / sqrt(T^2 +
    d^2)`, with T ten times the timestep of `sigma` and d = 0.5 (Luo et al. 2023, section 3.1 and appendix).

    At the smallest level they are 1 and 0 exactly. c_skip is 2.5e-3 one timestep above it and below 1e-5 from timestep
    16 on: at every level that a few-step sampler visits f is D, and the sampler `lcm` takes it for that.
    """
    scaled = TIME_SCALE * schedule.t(sigma)
    total = scaled**2 + SIGMA_DATA**2
    return Boundary(SIGMA_DATA**2 / total, scaled / total.sqrt())


def lower_levels(schedule: NoiseSchedule, sigma: Tensor, skip: int, steps: int = 1) -> list[Tensor]:
    """From each noise level down by `skip` timesteps, but not below the smallest level: `steps` + 1 levels at equal
    distances in time, the given ones first. sigma: float64, any shape."""
    t = schedule.t(sigma)
    reach = torch.clamp(t, max=float(skip))
    return [sigma, *(schedule.sigma(t - reach * (i / steps)) for i in range(1, steps + 1))]


def euler_step(denoiser: PerImage, x: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """x at the level `lower` of the trajectory through x, by one step of DDIM: order 1. sigma, lower: float64 [B]."""
    return _along(x, denoiser(x, sigma), sigma, lower)


def heun_step(denoiser: PerImage, x: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """The same by one step of Heun's method (Karras et al. 2022, algorithm 1): order 2, two calls of the denoiser."""
    x0 = denoiser(x, sigma)
    there = _along(x, x0, sigma, lower)
    ratio = _column(sigma / lower, x)
    # The mean of both slopes is (x - mean) / sigma for this mean of both estimates.
    mean = (x0 + x - ratio * (there - denoiser(there, lower))) / 2
    return _along(x, mean, sigma, lower)


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """The mean of `sqrt((a - b)^2 + c^2) - c` over each image, [B]: squares below c, absolute values above it (Song &
    Dhariwal 2023, section 3.3; by elements, as in the code of Luo et al. 2023)."""
    return (torch.sqrt((a - b).square() + c * c) - c).mean((1, 2, 3))


def squared(a: Tensor, b: Tensor) -> Tensor:
    """The mean of `(a - b)^2` over each image, [B]."""
    return (a - b).square().mean((1, 2, 3))


def _along(x: Tensor, x0: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    return torch.lerp(x0, x, _column(lower / sigma, x))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
