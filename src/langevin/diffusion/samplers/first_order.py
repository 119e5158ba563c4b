"""Samplers that use one estimate per step and remember nothing: DDPM, DDIM, Euler, LCM."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import assert_never

from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate, Step
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers.common import ancestral, intervals, toward
from langevin.errors import RequestError


class Variance(StrEnum):
    """The variance of DDPM's reverse step."""

    FIXED_SMALL = "fixed_small"
    """The posterior's: right where the data is a point."""
    FIXED_LARGE = "fixed_large"
    """The forward step's beta: right where the data is a unit Gaussian."""
    LEARNED = "learned"
    """Between the two in the logarithm, by the network's fraction (Nichol & Dhariwal 2021, equation 15)."""


def ddpm(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, variance: Variance | str = Variance.FIXED_SMALL
) -> Iterator[Step]:
    """Ancestral sampling of the discrete chain (Ho et al. 2020, algorithm 2). Order 1, stochastic.

    The posterior mean (equation 7) is `x0 + (s1/s)^2 (x - x0)` in these coordinates. For a grid with gaps the
    betas are those of the shortened chain (Nichol & Dhariwal 2021, section 4). No noise at the step to 0.
    """
    variance = Variance(variance)
    for i, s, s1 in intervals(sigmas):
        estimate = denoiser(x, s)
        x = toward(estimate.x0, x, (s1 / s) ** 2)
        if s1 > 0:
            x = x + _ddpm_deviation(variance, s, s1, estimate) * noise.step()
        yield Step(i, s1, x, estimate.x0)


def _ddpm_deviation(variance: Variance, s: float, s1: float, estimate: Estimate) -> float | Tensor:
    difference = (s - s1) * (s + s1)
    small = s1 * math.sqrt(difference) / s  # of beta-tilde, Ho et al. 2020, equation 7
    large = math.sqrt(difference * (1 + s1 * s1) / (1 + s * s))  # of beta
    match variance:
        case Variance.FIXED_SMALL:
            return small
        case Variance.FIXED_LARGE:
            return large
        case Variance.LEARNED:
            if estimate.variance_fraction is None:
                raise RequestError(
                    "variance 'learned' needs a network that predicts it; use fixed_small or fixed_large"
                )
            return small * (large / small) ** estimate.variance_fraction
        case _:
            assert_never(variance)


def ddim(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 0.0) -> Iterator[Step]:
    """Denoising diffusion implicit models (Song et al. 2021, equation 12). Order 1, stochastic where eta > 0.

    eta in [0, 1] scales the noise of equation 16: 0 is deterministic, 1 is DDPM with the small variance.
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        down, up = ancestral(s, s1, eta)
        x = toward(x0, x, down / s)
        if up > 0:
            x = x + up * noise.step()
        yield Step(i, s1, x, x0)


def euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Euler's method for `dx/dsigma = (x - D(x)) / sigma` (Karras et al. 2022, algorithm 1, line 5). Order 1.

    It is DDIM with eta = 0 and also runs upwards, on an ascending grid: DDIM inversion.
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        x = toward(x0, x, s1 / s)
        yield Step(i, s1, x, x0)


def euler_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """An Euler step to below the next level, then noise up to it (k-diffusion, `sample_euler_ancestral`). Order 1.

    With s_noise = 1 this is DDIM with the same eta (Song et al. 2021, equations 12 and 16).
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        down, up = ancestral(s, s1, eta)
        x = toward(x0, x, down / s)
        if up > 0:
            x = x + s_noise * up * noise.step()
        yield Step(i, s1, x, x0)


def lcm(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3; Song et al. 2023, algorithm 1). Order 0.

    For models distilled to give a sharp x0 from any level: each step takes it and noises it anew. With an ordinary
    denoiser the result is too smooth, and more steps do not make it converge.
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        x = x0 + s1 * noise.step() if s1 > 0 else x0
        yield Step(i, s1, x, x0)
