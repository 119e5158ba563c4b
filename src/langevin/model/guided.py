"""Denoisers made of a diffusion model and its conditioning."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.guidance import combine_in
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError
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
    space: Prediction = Prediction.X0,
) -> Denoiser:
    """Classifier-free guidance with one network call on 2 B images (Ho & Salimans 2022).

    The same as `langevin.diffusion.guidance.guided` of two denoisers, which documents the arguments: at `scale` 1 and
    unless low < sigma <= high only the conditional half is computed.
    """
    low, high = interval
    if not 0 <= low <= high:
        raise RequestError(f"guidance interval {low:g} to {high:g} is empty; it must be 0 <= low <= high, in sigma")
    plain = conditioned(model, cond)

    def denoiser(x: Tensor, sigma: float) -> Estimate:
        if scale == 1 or not low < sigma <= high:
            return plain(x, sigma)
        n = len(x)
        both = concatenate([repeated(uncond, n), repeated(cond, n)])
        estimate = model.denoise(x.repeat(2, 1, 1, 1), sigma, both)
        fraction = estimate.variance_fraction
        x0 = combine_in(space, estimate.x0[n:], estimate.x0[:n], x, sigma, scale, rescale)
        return Estimate(x0, None if fraction is None else fraction[n:])

    return denoiser


def repeated(cond: Conditioning, count: int) -> Conditioning:
    """A conditioning of one image as that of `count` images; one that already has `count` is given back."""

    def stretched(value: Tensor) -> Tensor:
        if len(value) == count:
            return value
        if len(value) != 1:
            raise ValueError(f"a conditioning of {len(value)} images cannot serve {count}")
        return value.expand(count, *value.shape[1:])

    def stretch(value: Tensor | None) -> Tensor | None:
        return None if value is None else stretched(value)

    return replace(
        cond,
        context=stretch(cond.context),
        labels=stretch(cond.labels),
        concat=stretch(cond.concat),
        images=stretch(cond.images),
        controls=tuple(replace(c, features=stretched(c.features)) for c in cond.controls),
        adapters=tuple(replace(a, features=tuple(stretched(f) for f in a.features)) for a in cond.adapters),
    )
