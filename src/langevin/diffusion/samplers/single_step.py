"""Samplers that look at the denoiser more than once within a step: Heun, DPM-Solver-2, DPM-Solver++ 2S, restart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from langevin.diffusion.core import Denoiser, Step
from langevin.diffusion.grids import karras_levels
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers.common import ancestral, intervals, toward


def heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun's method with churn (Karras et al. 2022, algorithm 2). Order 2; stochastic where s_churn > 0.

    Churn first raises the level by the factor 1 + gamma with fresh noise, while s_tmin <= sigma <= s_tmax. The
    step to 0 is Euler's.
    """
    steps = intervals(sigmas)
    for i, s, s1 in steps:
        if s_churn > 0 and s_tmin <= s <= s_tmax:
            gamma = min(s_churn / len(steps), math.sqrt(2) - 1)
            x = x + s_noise * s * math.sqrt(gamma * (2 + gamma)) * noise.step()
            s = s * (1 + gamma)
        x0 = denoiser(x, s).x0
        x = _heun_step(denoiser, x, x0, s, s1)
        yield Step(i, s1, x, x0)


def _heun_step(denoiser: Denoiser, x: Tensor, x0: Tensor, s: float, s1: float) -> Tensor:
    """The trapezoidal rule with slopes (x - D) / sigma; to 0, where the slope is not defined, Euler's step."""
    ahead = toward(x0, x, s1 / s)
    if s1 == 0:
        return ahead
    slope, slope_ahead = (x - x0) / s, (ahead - denoiser(ahead, s1).x0) / s1
    return x + (s1 - s) / 2 * (slope + slope_ahead)


def dpm2(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
    """The midpoint rule with its middle in log sigma (k-diffusion, `sample_dpm_2`, after Lu et al. 2022,
    DPM-Solver-2, and Karras et al. 2022, algorithm 2). Order 2. The step to 0 is Euler's."""
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        x = _midpoint_step(denoiser, x, x0, s, s1)
        yield Step(i, s1, x, x0)


def dpm2_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """`dpm2` to below the next level, then noise up to it (k-diffusion, `sample_dpm_2_ancestral`).

    Order 2 with eta = 0; stochastic, and of order 1, where eta > 0.
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        down, up = ancestral(s, s1, eta)
        x = _midpoint_step(denoiser, x, x0, s, down)
        if up > 0:
            x = x + s_noise * up * noise.step()
        yield Step(i, s1, x, x0)


def _midpoint_step(denoiser: Denoiser, x: Tensor, x0: Tensor, s: float, s1: float) -> Tensor:
    if s1 == 0:
        return x0
    middle = math.sqrt(s * s1)
    halfway = toward(x0, x, middle / s)
    slope = (halfway - denoiser(halfway, middle).x0) / middle
    return x + (s1 - s) * slope


def dpmpp_2s_ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1, r = 1/2) to below the next level, then noise up to it
    (k-diffusion, `sample_dpmpp_2s_ancestral`). Order 2 with eta = 0; stochastic, and of order 1, where eta > 0."""
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        down, up = ancestral(s, s1, eta)
        if down == 0:
            x = x0
        else:
            middle = math.sqrt(s * down)
            x0_middle = denoiser(toward(x0, x, middle / s), middle).x0
            x = toward(x0_middle, x, down / s)
        if up > 0:
            x = x + s_noise * up * noise.step()
        yield Step(i, s1, x, x0)


def dpmpp_sde(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Iterator[Step]:
    """DPM-Solver++ (2S) for the reverse SDE (k-diffusion, `sample_dpmpp_sde`, after Lu et al. 2022b). Stochastic.

    Order 2 with eta = 0. Looks at the level that lies r of the way in log sigma; both noises are taken from the same
    path, the first interval being a part of the second.
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        if s1 == 0:
            x = x0
        else:
            middle = s * (s1 / s) ** r
            down, up = ancestral(s, middle, eta)
            x_middle = toward(x0, x, down / s)
            if up > 0:
                x_middle = x_middle + s_noise * up * noise.between(s, middle)
            x0_middle = denoiser(x_middle, middle).x0

            down, up = ancestral(s, s1, eta)
            x = toward(x0 + (x0_middle - x0) / (2 * r), x, down / s)
            if up > 0:
                x = x + s_noise * up * noise.between(s, s1)
        yield Step(i, s1, x, x0)


def restart(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    segments: Sequence[tuple[float, float, int, int]] = ((0.1, 2.0, 9, 1),),
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun's method that goes back: at a low level, noise is added up to a high one and the part between is done
    again (Xu et al. 2023). Order 2 between the restarts; stochastic.

    segments: (low, high, steps, times) each; both ends are moved to the nearest level of the grid, and the part is
    redone `times` times on a Karras grid of `steps` intervals. A segment whose ends meet is left out.
    """
    level = float(sigmas[0])
    for i, (s, s1) in enumerate(restart_walk(sigmas, segments)):
        if s > level:
            x = x + s_noise * math.sqrt((s - level) * (s + level)) * noise.step()
        x0 = denoiser(x, s).x0
        x = _heun_step(denoiser, x, x0, s, s1)
        level = s1
        yield Step(i, s1, x, x0)


def segments_fault(segments: Any) -> str | None:
    """What is wrong with the segments of `restart`, or None."""
    try:
        for low, high, steps, times in segments:
            if not (0 < low < high and steps >= 1 and times >= 1 and steps == int(steps) and times == int(times)):
                return (
                    f"({low}, {high}, {steps}, {times}) must have 0 < low < high and whole steps, times of at least 1"
                )
    except (TypeError, ValueError):
        return f"{segments!r} must be a list of (low sigma, high sigma, steps, times)"
    return None


def restart_walk(sigmas: Tensor, segments: Sequence[tuple[float, float, int, int]]) -> list[tuple[float, float]]:
    """Every (sigma, next sigma) of `restart` in order; where sigma is above the last one's end, noise comes between."""
    main = [(s, s1) for _, s, s1 in intervals(sigmas)]
    starts = [s for s, _ in main]
    walk = []
    for s, s1 in main:
        walk.append((s, s1))
        for low, high, steps, times in segments:
            bottom = min((v for v in [*starts, main[-1][1]] if v > 0), key=lambda v: abs(v - low))
            top = min(starts, key=lambda v: abs(v - high))
            if s1 == bottom and top > bottom:
                levels = karras_levels(top, bottom, steps + 1).tolist()
                walk += list(pairwise(levels)) * times
    return walk
