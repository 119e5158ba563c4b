"""Denoisers made of a diffusion model and its conditioning."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.guidance import combine
from langevin.model.conditioning import Conditioning, concatenate
from langevin.model.diffusion_model import DiffusionModel


def conditioned(model: DiffusionModel, cond: Conditioning) -> Denoiser:
    """D(x, sigma) = D(x, sigma, cond). A conditioning of one image serves any number of them."""

    def denoiser(x: Tensor, sigma: float) -> Estimate:
        return model.denoise(x, sigma, repeated(cond, len(x)))

    return denoiser


def guided_model(
    model: DiffusionModel,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Denoiser:
    """Classifier-free guidance with one network call on 2 B images (Ho & Salimans 2022).

    Formed on x0 as `uncond + scale (cond - uncond)`, which is the same on eps or v; `rescale` in [0, 1] is the share
    of the standard deviation brought back (Lin et al. 2024, section 3.4). At `scale` 1 and at noise levels outside
    `interval` (sigma low, sigma high; Kynkaanniemi et al. 2024) only the conditional half is computed.
    """
    low, high = interval
    plain = conditioned(model, cond)

    def denoiser(x: Tensor, sigma: float) -> Estimate:
        if scale == 1 or not low <= sigma <= high:
            return plain(x, sigma)
        n = len(x)
        both = concatenate([repeated(uncond, n), repeated(cond, n)])
        estimate = model.denoise(x.repeat(2, 1, 1, 1), sigma, both)
        fraction = estimate.variance_fraction
        x0 = combine(estimate.x0[n:], estimate.x0[:n], scale, rescale)
        return Estimate(x0, None if fraction is None else fraction[n:])

    return denoiser


def repeated(cond: Conditioning, count: int) -> Conditioning:
    """A conditioning of one image as that of `count` images; one that already has `count` is given back."""

    def stretch(value: Tensor | None) -> Tensor | None:
        if value is None or len(value) == count:
            return value
        if len(value) != 1:
            raise ValueError(f"a conditioning of {len(value)} images cannot serve {count}")
        return value.expand(count, *value.shape[1:])

    return replace(
        cond,
        context=stretch(cond.context),
        labels=stretch(cond.labels),
        concat=stretch(cond.concat),
        controls=tuple(replace(c, features=stretch(c.features)) for c in cond.controls),
    )
