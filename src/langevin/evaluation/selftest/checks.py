"""The measurements: each gives rows for the report. docs/selftest.md states and justifies every bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SamplerInfo, final
from langevin.evaluation.selftest.impulses import Impulses, Recorder, Run, moments
from langevin.evaluation.selftest.problems import Gaussian, Mixture, Problem
from langevin.evaluation.selftest.recorded import ERRORS
from langevin.evaluation.selftest.report import Row
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel

EXACT = 1e-9
"""Bound of what is exact but for float64's rounding; the worst that was seen is 3e-15."""
ORDER_TOLERANCE = 0.25
"""A measured order may differ from the declared one by this much; the worst that was seen is 0.18. A wrong formula
loses a whole order."""
ERROR_TOLERANCE = 0.05
"""Relative, between an error at the finest grid and the recorded one."""

STEPS = (64, 128, 256)
"""Grids for orders: fine enough for the leading term of the error to stand alone."""
HIGH, LOW = 1.5, 0.15
"""Their ends: around the spread of the data, where the flow bends most, and above 0, where solvers fall back to lower
order. From a higher level the start of a multistep solver would cost nothing and hide its order."""


def smooth_grid(steps: int) -> Tensor:
    """Even in log sigma from HIGH to LOW, float64 [steps + 1]; those of 64, 128 and 256 steps are nested exactly."""
    fine = torch.logspace(math.log10(HIGH), math.log10(LOW), STEPS[-1] + 1, dtype=torch.float64)
    return fine[:: STEPS[-1] // steps].clone()


def uneven_grid(steps: int) -> Tensor:
    """As `smooth_grid`, but steps of one and two thirds in turn: a multistep solver must know their lengths."""
    logs = torch.linspace(math.log(HIGH), math.log(LOW), steps // 2 + 1, dtype=torch.float64)
    third = (2 * logs[:-1] + logs[1:]) / 3
    return torch.cat([torch.stack([logs[:-1], third], 1).flatten(), logs[-1:]]).exp()


def order(errors: Sequence[float], steps: Sequence[int] = STEPS) -> float:
    """The slope of log(error) over log(1 / steps), by least squares; NaN where an error is 0 or not finite."""
    if not all(0 < e < math.inf for e in errors):
        return math.nan
    x = [-math.log(n) for n in steps]
    y = [math.log(e) for e in errors]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def bind(info: SamplerInfo, sigmas: Tensor, options: Mapping[str, Any]) -> Run:
    """The sampler with grid and options given."""
    return lambda denoiser, x, noise: info.function(denoiser, x, sigmas, noise, **options)


# -- a point mass: every consistent solver is exact ---------------------------------------------------------------


POINT = Gaussian(mean=0.4, std=0.0, name="point mass")
POINT_GRIDS = (
    (14.6, 0.0),
    (14.6, 1.3, 0.0),
    (14.6, 7.1, 3.2, 0.9, 0.11, 0.0),
    (9.0, 8.0, 5.0, 4.9, 2.0, 1.9, 1.0, 0.6, 0.3, 0.29, 0.1, 0.03),
)


def exact_steps(subject: str, info: SamplerInfo, options: Mapping[str, Any]) -> Iterator[Row]:
    """With D constant the flow is a straight line and each noised state has variance sigma^2: at every step of every
    grid, however coarse and uneven. Also the bookkeeping: a step for each interval, at its lower end, and the
    number of network calls."""
    worst, extra = 0.0, 0
    for levels in POINT_GRIDS:
        sigmas = torch.tensor(levels, dtype=torch.float64)
        counted = _Counted(POINT.denoise)
        states = moments(bind(info, sigmas, options), counted, POINT.mean + 0.7, sigmas[0].item() ** 2)
        walk = [s.sigma for s in states]
        if info.name != "restart" and walk != sigmas[1:].tolist():
            worst = math.inf
        if not walk or walk[-1] != levels[-1]:
            worst = math.inf
        if info.name in CALLS:
            # `moments` runs the sampler twice.
            extra = max(extra, abs(counted.calls // 2 - expected_calls(info.name, levels)))
        stochastic = any(len(s.response) > 0 and float(s.response.abs().max()) > 0 for s in states)
        for s in states:
            worst = max(worst, abs(math.sqrt(s.variance) - s.sigma) / levels[0])
            if not stochastic:
                worst = max(worst, abs(s.mean - POINT.mean - 0.7 * s.sigma / levels[0]))
        if states:
            worst = max(worst, abs(states[-1].mean - POINT.mean) if levels[-1] == 0 else 0.0)
    yield Row(subject, POINT.name, "worst step", worst, 0.0, EXACT)
    if info.name in CALLS:
        yield Row(subject, POINT.name, "calls amiss", float(extra), 0.0, 0.0)


CALLS: Mapping[str, int] = {
    **dict.fromkeys(("ddpm", "ddim", "euler", "euler_ancestral", "lcm", "lms", "plms", "unipc"), 1),
    **dict.fromkeys(("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"), 1),
    **dict.fromkeys(("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"), 2),
}
"""Calls of the denoiser in one interval. The interval to sigma 0 takes one; plms takes one more in the first that does
not end there. That of restart depends on its segments."""


def expected_calls(name: str, levels: Sequence[float]) -> int:
    intervals = len(levels) - 1
    to_zero = int(levels[-1] == 0)
    return CALLS[name] * (intervals - to_zero) + to_zero + int(name == "plms" and levels[1] > 0)


class _Counted:
    """Counts calls of a denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Estimate:
        self.calls += 1
        return self.denoiser(x, sigma)


# -- order of convergence to the flow -----------------------------------------------------------------------------


def flow_order(
    subject: str,
    info: SamplerInfo,
    options: Mapping[str, Any],
    declared: int,
    even: bool = True,
) -> Iterator[Row]:
    """Of a sampler without noise, against the exact flow from HIGH to LOW."""
    grid = smooth_grid if even else uneven_grid
    p = torch.linspace(0.03, 0.97, 24, dtype=torch.float64).view(-1, 1, 1, 1)
    gaussian, mixture = Gaussian(std=0.7), Mixture()
    starts: list[tuple[Problem, Tensor]] = [
        (gaussian, gaussian.mean + math.sqrt(gaussian.variance(HIGH)) * torch.special.ndtri(p)),
        (mixture, mixture.quantile(p, HIGH)),
    ]
    for problem, x in starts:
        exact = problem.flow(x, HIGH, LOW)
        errors = [
            float((final(bind(info, grid(n), options)(problem.denoise, x, Recorder())) - exact).abs().max())
            for n in STEPS
        ]
        bounds = declared - ORDER_TOLERANCE, declared + ORDER_TOLERANCE
        check = problem.name if even else f"{problem.name}, uneven"
        yield Row(subject, check, "order", order(errors), *bounds)
        yield _error_row(subject, check, "error", errors[-1])


def _error_row(subject: str, check: str, quantity: str, error: float) -> Row:
    recorded = ERRORS[subject, check, quantity]
    return Row(subject, check, quantity, error, (1 - ERROR_TOLERANCE) * recorded, (1 + ERROR_TOLERANCE) * recorded)


# -- stochastic samplers: exact moments for Gaussian data ---------------------------------------------------------


def variance_order(
    subject: str, info: SamplerInfo, options: Callable[[int], Mapping[str, Any]], declared: int
) -> Iterator[Row]:
    """Of the variance of the last state: exact moments, so the bias of the solver and nothing else."""
    data = Gaussian(std=0.7)
    errors = []
    for n in STEPS:
        run = bind(info, smooth_grid(n), options(n))
        last = moments(run, data.denoise, data.mean, data.variance(HIGH))[-1]
        errors.append(abs(last.variance / data.variance(LOW) - 1))
    bounds = declared - ORDER_TOLERANCE, declared + ORDER_TOLERANCE
    yield Row(subject, data.name, "variance order", order(errors), *bounds)
    yield _error_row(subject, data.name, "variance error", errors[-1])


def path_order(subject: str, info: SamplerInfo, declared: int = 1) -> Iterator[Row]:
    """Strong order: how fast runs on the same Brownian path come together as the steps shrink.

    The root mean square distance over all paths, exactly: states are affine in the increments of the path on the finest
    grid.
    """
    data = Gaussian(std=0.7)
    record = Recorder()
    for _ in info.function(data.denoise, torch.zeros(1, 1, 1, 1, dtype=torch.float64), smooth_grid(STEPS[-1]), record):
        pass
    responses = []
    for n in STEPS:
        impulses = Impulses(record)
        x = torch.full((impulses.batch, 1, 1, 1), data.mean, dtype=torch.float64)
        x[1] += math.sqrt(data.variance(HIGH))
        end = final(info.function(data.denoise, x, smooth_grid(n), impulses)).flatten()
        responses.append(end[1:] - end[0])
    distances = [float((a - b).norm()) for a, b in pairwise(responses)]
    bounds = declared - ORDER_TOLERANCE, declared + ORDER_TOLERANCE
    yield Row(subject, "brownian path", "path order", order(distances, STEPS[1:]), *bounds)


def exact_variance(subject: str, info: SamplerInfo, options: Mapping[str, Any], data: Gaussian) -> Iterator[Row]:
    """Of samplers that are exact for one kind of Gaussian data at any number of steps."""
    worst = 0.0
    for levels in POINT_GRIDS:
        sigmas = torch.tensor(levels, dtype=torch.float64)

        def denoise(x: Tensor, sigma: float, levels: Sequence[float] = levels) -> Estimate:
            if info.name == "lcm":
                return data.consistency(x, sigma)
            s1 = next((level for level in levels if level < sigma), 0.0)
            return data.denoise_with_variance(x, sigma, s1) if s1 > 0 else data.denoise(x, sigma)

        for s in moments(bind(info, sigmas, options), denoise, data.mean, data.variance(levels[0])):
            if s.sigma > 0 or info.name == "lcm":
                worst = max(worst, abs(s.variance / data.variance(s.sigma) - 1), abs(s.mean - data.mean))
    yield Row(subject, f"{data.name}, std {data.std:g}", "worst step", worst, 0.0, EXACT)


# -- whole runs on a mixture, with real noise ---------------------------------------------------------------------

SAMPLES = 128
"""Pictures of SAMPLES x SAMPLES independent scalars."""


def mixture_run(subject: str, info: SamplerInfo, options: Mapping[str, Any]) -> Iterator[Row]:
    """64 steps from 14.6 to 0 from seed 0: the distribution of 16,384 scalars against the data's own.

    The distance of distribution functions exceeds 0.0152 by chance once in a thousand seeds; first-order solvers
    have a bias of about that much.
    """
    data = Mixture()
    sigmas = torch.cat([torch.logspace(math.log10(14.6), math.log10(0.03), 64, dtype=torch.float64), torch.zeros(1)])
    noise = Noise([0], (1, SAMPLES, SAMPLES), dtype=torch.float64)
    x = data.quantile(torch.special.ndtr(noise.initial()), 14.6)
    x = final(bind(info, sigmas, options)(data.denoise, x, noise)).flatten()
    exact = data.cdf(torch.sort(x).values, 0.0)
    ranks = torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    distance = max(float((ranks[1:] - exact).max()), float((exact - ranks[:-1]).max()))
    yield Row(subject, data.name, "distribution", distance, 0.0, 0.03)
    mean, variance = data.moments()
    yield Row(subject, data.name, "mean", float(x.mean()), mean - 0.04, mean + 0.04)
    yield Row(subject, data.name, "variance", float(x.var()), 0.94 * variance, 1.06 * variance)


# -- the model's seam ---------------------------------------------------------------------------------------------


def model_matches(prediction: Prediction, model: DiffusionModel, info: SamplerInfo) -> Iterator[Row]:
    """A network that is right by construction, seen through DiffusionModel: the denoiser is the closed form, and a
    whole run ends where the flow does."""
    data = Gaussian()
    x = torch.linspace(-3, 3, 24, dtype=torch.float64).view(-1, 1, 1, 1)
    denoise = partial(_denoise, model)
    worst = 0.0
    for t in (0.0, 1.0, 37.4, 250.0, 500.5, 999.0):
        sigma = float(model.schedule.sigma(t))
        noised = x * (1 + sigma)
        worst = max(worst, float((denoise(noised, sigma).x0 - data.denoise(noised, sigma).x0).abs().max()))
    # The network is told the time in float32.
    yield Row(f"{prediction} model", data.name, "denoiser", worst, 0.0, 1e-4)
    end = final(info.function(denoise, x * HIGH, smooth_grid(STEPS[-1]), Recorder()))
    error = float((end - data.flow(x * HIGH, HIGH, LOW)).abs().max())
    yield Row(f"{prediction} model", data.name, "error", error, 0.0, 1e-4)


def _denoise(model: DiffusionModel, x: Tensor, sigma: float) -> Estimate:
    return model.denoise(x, sigma, Conditioning())
