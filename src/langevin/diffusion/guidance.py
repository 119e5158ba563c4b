"""Guidance: functions from denoisers to a denoiser. No sampler and no network knows about it.

All of it acts on x0. For classifier-free guidance without rescaling that is the same as acting on epsilon or v, because
each is affine in the other with coefficients that depend on sigma alone. Rescaling, clipping and thresholding are not
linear: there the space matters, and it is x0 unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError

# -- classifier-free ----------------------------------------------------------------------------------------------


def combine(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """`uncond + scale (cond - uncond)`, B C H W (Ho & Salimans 2022, equation 6, with scale = 1 + their w).

    scale 1 gives `cond`, 0 gives `uncond`; the negative prompt takes uncond's place. rescale in [0, 1] draws each
    image's standard deviation towards that of `cond` (Lin et al. 2024, section 3.4), in whatever space the
    two tensors are in. An image without any deviation is left as it is.
    """
    if not 0 <= rescale <= 1:
        raise RequestError(f"rescale {rescale:g} is out of range; it must be from 0 to 1")
    guided = torch.lerp(uncond, cond, scale)
    if rescale == 0:
        return guided
    dimensions = tuple(range(1, guided.ndim))
    spread = guided.std(dimensions, keepdim=True)  # B 1 1 1
    ratio = torch.where(spread > 0, cond.std(dimensions, keepdim=True) / spread, 1.0)
    return guided * (1 - rescale + rescale * ratio)


def combine_in(
    space: Prediction, cond: Tensor, uncond: Tensor, x: Tensor, sigma: float, scale: float, rescale: float = 0.0
) -> Tensor:
    """`combine` for two x0 (B C H W) with the standard deviations of the rescaling taken in another space.

    Programs that rescale the network's raw output measure it in EPSILON or V. Without rescaling all spaces agree.
    """
    if rescale == 0 or space is Prediction.X0:
        return combine(cond, uncond, scale, rescale)
    c_skip, c_out, _ = (float(c) for c in space.coefficients(torch.tensor(sigma, dtype=torch.float64)))
    raw = combine((cond - c_skip * x) / c_out, (uncond - c_skip * x) / c_out, scale, rescale)
    return c_skip * x + c_out * raw


def guided(
    cond: Denoiser,
    uncond: Denoiser,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, math.inf),
    space: Prediction = Prediction.X0,
) -> Denoiser:
    """Classifier-free guidance of two denoisers; `combine` gives the formula.

    Outside `interval` = (low, high), that is unless low < sigma <= high, only `cond` is called (Kynkäänniemi et al.
    2024), and so it is where scale = 1. The learned variance is that of `cond`.
    """

    def both(x: Tensor, sigma: float) -> Estimate:
        with_cond = cond(x, sigma)
        x0 = combine_in(space, with_cond.x0, uncond(x, sigma).x0, x, sigma, scale, rescale)
        return with_cond._replace(x0=x0)

    return cond if scale == 1 else limited(both, cond, *interval)


def limited(inside: Denoiser, outside: Denoiser, low: float, high: float) -> Denoiser:
    """`inside` where low < sigma <= high, `outside` elsewhere."""
    if not 0 <= low <= high:
        raise RequestError(f"interval {low:g} to {high:g} is empty; it must be 0 <= low <= high, in sigma")

    def denoise(x: Tensor, sigma: float) -> Estimate:
        return inside(x, sigma) if low < sigma <= high else outside(x, sigma)

    return denoise


# -- by a classifier ----------------------------------------------------------------------------------------------


def classifier_guided(
    denoiser: Denoiser, log_probability: Callable[[Tensor, float], Tensor], scale: float = 1.0
) -> Denoiser:
    """`x0 + scale sigma^2 grad_x log p(y | x, sigma)` (Dhariwal & Nichol 2021, algorithm 2).

    log_probability(x, sigma) gives [B] for x of B C H W in variance-exploding coordinates: a classifier trained on
    variance-preserving z is called with `x / sqrt(1 + sigma^2)`. It must be differentiable; that the caller has
    switched gradients off does not matter.
    """

    def denoise(x: Tensor, sigma: float) -> Estimate:
        estimate = denoiser(x, sigma)
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(at, sigma).sum(), at)
        return estimate._replace(x0=estimate.x0 + scale * sigma * sigma * gradient)

    return denoise


# -- bounds of x0 -------------------------------------------------------------------------------------------------


def clipped(denoiser: Denoiser, limit: float = 1.0) -> Denoiser:
    """x0 clipped to [-limit, limit] (Ho et al. 2020, as implemented): for models of pixels, not of latents.

    What is not finite stays so: a network's failure must not become a picture.
    """

    def denoise(x: Tensor, sigma: float) -> Estimate:
        estimate = denoiser(x, sigma)
        x0 = torch.where(estimate.x0.isfinite(), estimate.x0.clamp(-limit, limit), estimate.x0)
        return estimate._replace(x0=x0)

    return denoise


def dynamically_thresholded(denoiser: Denoiser, percentile: float = 0.995, limit: float = 1.0) -> Denoiser:
    """x0 clipped at each image's own percentile of |x0| and brought back into [-limit, limit].

    Where the percentile is below `limit` it is plain clipping (Saharia et al. 2022, Imagen, section 2.3). For models of
    pixels.
    """
    if not 0 < percentile <= 1:
        raise RequestError(f"percentile {percentile:g} is out of range; it must be above 0 and at most 1")

    def denoise(x: Tensor, sigma: float) -> Estimate:
        estimate = denoiser(x, sigma)
        # One image at a time: torch.quantile refuses more than 2^24 numbers at once.
        s = torch.stack([torch.quantile(image.abs().flatten(), percentile) for image in estimate.x0])
        s = s.clamp(min=limit).view(-1, *[1] * (x.ndim - 1))  # B 1 1 1
        return estimate._replace(x0=torch.clamp(estimate.x0, -s, s) * (limit / s))

    return denoise


# -- over the run and over the picture ----------------------------------------------------------------------------


def switch_at(first: Denoiser, *later: tuple[float, Denoiser]) -> Denoiser:
    """`first`, and from each (threshold, denoiser) on that denoiser: it acts where sigma <= threshold.

    Thresholds must fall strictly. `grids.level_at` turns a fraction of the run into one.
    """
    thresholds = [threshold for threshold, _ in later]
    if any(a <= b for a, b in pairwise(thresholds)):
        raise RequestError(f"switches at sigma {thresholds} are out of order; each must be below the one before")

    def denoise(x: Tensor, sigma: float) -> Estimate:
        acting = first
        for threshold, denoiser in later:
            if sigma <= threshold:
                acting = denoiser
        return acting(x, sigma)

    return denoise


def keep_known(denoiser: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """`mask D + (1 - mask) known`: inpainting with an ordinary model.

    known: the clean picture, B C H W in the model's units. mask: in [0, 1] or bool, 1 where the model paints, broadcast
    to B C H W. Where the mask is 0, x0 is `known` bit for bit at every step.
    """
    weight = mask.to(known)

    def denoise(x: Tensor, sigma: float) -> Estimate:
        estimate = denoiser(x, sigma)
        x0 = torch.lerp(known, estimate.x0, weight)
        return estimate._replace(x0=torch.where(weight == 0, known, x0))

    return denoise
