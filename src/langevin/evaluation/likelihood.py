"""How probable a model finds given pictures, in bits per dimension.

Two measurements, both of which need a denoiser and nothing else of the model:

- the variational bound of a discrete-time model (Ho et al. 2020, equation 5), for the process that `ddpm` samples;
- the likelihood under the probability-flow ODE (Song et al. 2021, section D.2), for any model.

Both work in variance-exploding coordinates. The bound's terms are divergences, which a change of scale leaves as they
are; for the ODE the scale at the smallest level is the data's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.noise import Noise
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import DataError, RequestError


class ReverseVariance(StrEnum):
    """The variance of each step of the reverse process."""

    FIXED_SMALL = "fixed_small"
    """The posterior's (Ho et al. 2020, section 3.2, second choice)."""
    FIXED_LARGE = "fixed_large"
    """beta (the first choice)."""
    LEARNED = "learned"
    """Between the two, by the network's fraction (Nichol & Dhariwal 2021, equation 15)."""


class VariationalBound(NamedTuple):
    """An upper bound of the negative log-likelihood, bits per dimension, float64."""

    terms: Tensor
    """[B, T]: L_0, the discretised decoder, then L_1 ... L_{T-1}, one for each step of the reverse process."""
    prior: Tensor
    """[B]: L_T, what the last forward step still holds of the picture."""

    @property
    def total(self) -> Tensor:
        """[B]."""
        return self.terms.sum(1) + self.prior


# -- variational bound --------------------------------------------------------------------------------------------


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    schedule: NoiseSchedule,
    noise: Noise,
    *,
    variance: ReverseVariance | str = ReverseVariance.FIXED_SMALL,
) -> VariationalBound:
    """Ho et al. 2020, equation 5, with one draw of the noise at each of the T levels: T calls of the denoiser.

    x0: B C H W, 8-bit pixels brought to [-1, 1], in the dtype that the denoiser takes. noise: one seed an image; the
    result is a random figure, whose mean over the seeds is the bound itself. A model is measured on fewer steps by
    giving a schedule of those levels alone.

    The variance of the last step, which the posterior leaves at 0, is that of the step before, as in the programs of
    both papers; with LEARNED it lies between that and beta. Probabilities of the 256 values are exact differences of
    the normal distribution function, where those programs approximate it or hold it above 1e-12.

    Raises DataError where x0 is not on the 256 levels, RequestError where `variance` is LEARNED and the denoiser gives
    no fraction, or where noise and x0 differ in shape.
    """
    variance = ReverseVariance(variance)
    _check_noise(noise, x0)
    dtype = x0.dtype
    steps = (x0.to(torch.float64) + 1) * 127.5
    if float(steps.min()) < 0 or float(steps.max()) > 255 or float((steps - steps.round()).abs().max()) > 0.01:
        raise DataError(
            "x0 is not on the 256 levels of 8-bit pixels from -1 to 1; the bound is of discrete pixels only"
        )
    x0 = steps.round() / 127.5 - 1
    sigmas = schedule.sigmas

    def estimate(sigma: Tensor) -> Estimate:
        x = x0 + sigma * noise.step().to(x0)
        found = denoiser(x.to(dtype), float(sigma))
        fraction = None if found.variance_fraction is None else found.variance_fraction.to(x0)
        return Estimate(found.x0.to(x0), fraction)

    terms = [decoder_term(x0, estimate(sigmas[0]), sigmas[0], sigmas[1], variance)]
    terms += [transition_term(x0, estimate(s), s, s1, variance) for s1, s in pairwise(sigmas)]
    abar = 1 / (1 + float(sigmas[-1]) ** 2)
    prior = _mean_bits((abar * x0.square() - abar - math.log1p(-abar)) / 2)
    return VariationalBound(torch.stack(terms, 1), prior)


def decoder_term(
    x0: Tensor, found: Estimate, first: Tensor, second: Tensor, variance: ReverseVariance = ReverseVariance.LEARNED
) -> Tensor:
    """L_0, bits per dimension [B]: the discretised decoder at the schedule's first level, where `found` was estimated.

    x0: B C H W on the 256 levels, in [-1, 1]. first, second: the schedule's first two levels, float64. Gradients reach
    what `found` lets them reach.
    """
    # In the coordinates of x0; x1's own variance is scaled to those by abar of the first level.
    small = _posterior(second, first) / (1 + first**2)
    beta = first**2 / (1 + first**2)
    log_variance = _log_variance(variance, small, small if variance is ReverseVariance.FIXED_LARGE else beta, found)
    return _mean_bits(-_discretised_log_probability(x0, found.x0, log_variance))


def transition_term(
    x0: Tensor, found: Estimate, s: Tensor, s1: Tensor, variance: ReverseVariance = ReverseVariance.LEARNED
) -> Tensor:
    """L_t, bits per dimension [B]: the divergence of the model's step from level s to s1 from the posterior's.

    x0: B C H W. found: at level s. s > s1 > 0: float64, 0-dimensional or, where they differ, B 1 1 1.
    """
    true = _posterior(s, s1)
    log_model = _log_variance(variance, true, (s * s - s1 * s1) * (1 + s1 * s1) / (1 + s * s), found)
    apart = ((1 - s1 * s1 / (s * s)) ** 2).to(x0) * (found.x0 - x0).square()
    ratio = true.log().to(x0) - log_model
    return _mean_bits((torch.expm1(ratio) - ratio + apart * torch.exp(-log_model)) / 2)


def _posterior(s: Tensor, s1: Tensor) -> Tensor:
    """Variance of x at s1 given x at s and x0."""
    return s1 * s1 * (s * s - s1 * s1) / (s * s)


def _log_variance(variance: ReverseVariance, small: Tensor, large: Tensor, found: Estimate) -> Tensor:
    like = found.x0
    match variance:
        case ReverseVariance.FIXED_SMALL:
            return small.log().to(like)
        case ReverseVariance.FIXED_LARGE:
            return large.log().to(like)
        case ReverseVariance.LEARNED:
            if found.variance_fraction is None:
                raise RequestError("variance learned: this model gives no variance; choose fixed_small or fixed_large")
            return small.log().to(like) + found.variance_fraction * (large / small).log().to(like)
        case _:
            assert_never(variance)


def _discretised_log_probability(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of each pixel's bin of width 2/255, the outer ones reaching to infinity (Ho et al. 2020, equation 13); nats."""
    deviation = torch.exp(log_variance / 2)
    low = torch.where(x0 <= -1, -math.inf, (x0 - 1 / 255 - mean) / deviation)
    high = torch.where(x0 >= 1, math.inf, (x0 + 1 / 255 - mean) / deviation)
    # In the upper tail both values of the distribution function round to 1; mirrored, they keep their digits.
    upper = low > 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return b + torch.log(-torch.expm1(a - b))


def _mean_bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)


# -- probability flow ---------------------------------------------------------------------------------------------


def ode_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    probes: int | None = 1,
    prior_deviation: float | None = None,
) -> Tensor:
    """Log-density of x, in nats, under the probability-flow ODE (Song et al. 2021, equation 39); float64 [B].

    x: B C H W, samples at the smallest level of the grid, for which the data is taken as it is; real-valued, so
    `dequantised` where it was pixels. sigmas: a descending grid that ends above 0, as the samplers use it; it is
    followed upwards by Heun's method, two calls of the denoiser an interval, with the trace integrated over log sigma.
    The error is of order 2 in the steps.

    The trace of the Jacobian is estimated with `probes` Rademacher vectors for each image (Hutchinson 1990), the same
    ones along the whole path: unbiased on the path, with an error that falls like 1 / sqrt(probes), and one backward
    pass each. None takes the exact trace with a backward pass for each dimension, which is for small problems.

    prior_deviation: of the Gaussian at the largest level; sqrt(1 + sigma^2) unless given, the prior of
    variance-preserving models.

    The images of a batch must not influence each other. Raises RequestError for an unfit grid, and where the denoiser
    does not let gradients through.
    """
    _check_noise(noise, x)
    grid = [float(s) for s in sigmas]
    if len(grid) < 2 or not all(s > s1 > 0 for s, s1 in pairwise(grid)) or not math.isfinite(grid[0]):
        raise RequestError("the grid must have at least 2 levels, descend and end above 0; leave out its last level 0")
    if probes is not None and probes < 1:
        raise RequestError(f"probes {probes} is out of range; it must be at least 1, or None for the exact trace")
    deviation = math.hypot(1, grid[0]) if prior_deviation is None else prior_deviation
    if not deviation > 0:
        raise RequestError(f"prior_deviation {deviation:g} is out of range; it must be above 0")
    directions = None
    if probes is not None:
        directions = [torch.where(noise.step() < 0, -1.0, 1.0).to(x) for _ in range(probes)]
    x = x.detach()
    gathered = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for s1, s in pairwise(reversed(grid)):
        slope, divergence = _flow(denoiser, x, s1, directions)
        there, divergence_there = _flow(denoiser, x + (s - s1) * slope, s, directions)
        x = x + (s - s1) / 2 * (slope + there)
        gathered += math.log(s / s1) / 2 * (divergence + divergence_there)
    scaled = x.to(torch.float64).flatten(1) / deviation
    at_end = -(scaled.square() / 2 + math.log(deviation) + math.log(2 * math.pi) / 2).sum(1)
    return at_end + gathered


def _flow(denoiser: Denoiser, x: Tensor, sigma: float, directions: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """dx / dsigma = (x - D(x, sigma)) / sigma, and sigma times its divergence, float64 [B].

    At high levels the path is straight in sigma, and sigma times the divergence is constant: each is integrated in the
    variable in which it is nearly linear.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        x0 = denoiser(x, sigma).x0
        if not x0.requires_grad:
            raise RequestError("the denoiser does not let gradients through, which the likelihood needs")
        probes = _axes(x) if directions is None else iter(directions)
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for v in probes:
            (product,) = torch.autograd.grad(x0, x, v, retain_graph=True)
            trace += (product.to(torch.float64) * v).flatten(1).sum(1)
    if directions is not None:
        trace /= len(directions)
    return ((x - x0) / sigma).detach(), x[0].numel() - trace


def _axes(x: Tensor) -> Iterator[Tensor]:
    """Each unit vector of one image, for all images at once."""
    for i in range(x[0].numel()):
        v = torch.zeros_like(x, requires_grad=False).flatten(1)
        v[:, i] = 1
        yield v.view_as(x)


def dequantised(x0: Tensor, noise: Noise) -> Tensor:
    """8-bit pixels in [-1, 1] with uniform noise as wide as a level, 2/255 (Theis et al. 2016, section 3.1)."""
    _check_noise(noise, x0)
    uniform = torch.special.ndtr(noise.step().to(torch.float64)) - 0.5
    return (x0 + uniform.to(x0.device) * (2 / 255)).to(x0.dtype)


def bits_per_dim(log_density: Tensor, dimensions: int) -> Tensor:
    """Nats of `dequantised` pixels to bits per dimension of the 8-bit ones: an upper bound on average.

    The density is over [-1, 1], where a level is 2/255 wide: `-log2(p) / dimensions + log2(127.5)`.
    """
    return -log_density / (dimensions * math.log(2)) + math.log2(127.5)


def _check_noise(noise: Noise, x: Tensor) -> None:
    expected = (len(noise), *noise.shape)
    if tuple(x.shape) != expected:
        raise RequestError(f"the pictures have shape {tuple(x.shape)} and the noise {expected}; give one seed an image")
