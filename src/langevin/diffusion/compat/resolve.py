"""From a program's conventions to the plain numbers of one run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor

from langevin.diffusion.compat.conventions import (
    Between,
    Conventions,
    ImageToImage,
    Last,
    Placement,
    Prior,
    Spacing,
    Times,
)
from langevin.diffusion.compat.programs import COMPAT
from langevin.diffusion.grids import make_grid
from langevin.diffusion.noise import IntervalNoise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError


@dataclass(frozen=True, eq=False)
class Timetable:
    """A map from noise level to the time that the network is told, with exceptions at listed levels."""

    sigmas: Tensor
    """float64 [n], > 0: the listed levels."""
    times: Tensor
    """float64 [n]: their timesteps."""
    schedule: NoiseSchedule
    nearest: bool = False
    """Elsewhere: the nearest whole timestep in log sigma instead of the interpolated one."""

    def __call__(self, sigma: Tensor) -> Tensor:
        """float64, sigma's shape."""
        s = sigma.to("cpu", torch.float64)
        if self.nearest:
            away = (torch.log(s)[..., None] - torch.log(self.schedule.sigmas)).abs()
            return away.argmin(-1).to(torch.float64)
        elsewhere = self.schedule.t(s)
        # Grid levels arrive as the same float64 numbers; the tolerance is for those that went through a tensor of x's
        # dtype on the way.
        away = (s[..., None] / self.sigmas - 1).abs()
        closest = away.argmin(-1)
        listed = away.gather(-1, closest[..., None])[..., 0] < 1e-6
        return torch.where(listed, self.times[closest], elsewhere)


@dataclass(frozen=True, eq=False, kw_only=True)
class Resolved:
    """One run in plain numbers."""

    sampler: str
    sigmas: Tensor
    """float64 [n+1], descending."""
    prior_scale: float
    """The first state is this times unit noise."""
    final_scale: float
    """The last state times this is the latent to decode: 1 for a grid that ends at zero, else sqrt(abar) of its
    lowest level, since other programs decode the variance-preserving z."""
    times: Timetable | None
    """For `DiffusionModel.times`; None: the schedule's own."""
    sampler_options: Mapping[str, Any]
    interval_noise: IntervalNoise
    step_seed_offset: int | None
    notices: tuple[str, ...]


def resolve(
    conventions: Conventions | str,
    sampler: str,
    schedule: NoiseSchedule,
    steps: int,
    *,
    grid: str | None = None,
    prediction: Prediction | None = None,
) -> Resolved:
    """The grid, scales, times and sampler options with which a program would run `sampler` for `steps` steps.

    Raises RequestError where the program has no such sampler, grid, step count or prediction type.
    """
    if isinstance(conventions, str):
        if conventions not in COMPAT:
            raise RequestError(f"compat {conventions!r} is not known; there are: {', '.join(COMPAT)}")
        conventions = COMPAT[conventions]
    if sampler not in conventions.samplers:
        has = ", ".join(conventions.samplers)
        raise RequestError(f"sampler {sampler!r} cannot be run as {conventions.name} does; it can: {has}")
    rule = conventions.samplers[sampler]
    name = grid or rule.grid
    if name not in rule.grids:
        has = ", ".join(rule.grids)
        raise RequestError(f"{sampler} on the grid {name!r} cannot be run as {conventions.name} does; it can on: {has}")
    placement = rule.grids[name]
    if steps < placement.fewest_steps:
        raise RequestError(f"{steps} steps: {conventions.name} needs at least {placement.fewest_steps} for {sampler}")
    if placement.divisors_only and len(schedule) % steps:
        raise RequestError(
            f"{steps} steps: with the {name} grid {conventions.name} runs {sampler} consistently only where the "
            f"number of steps divides {len(schedule)}"
        )
    if rule.predictions is not None and prediction is not None and prediction not in rule.predictions:
        raise RequestError(f"{conventions.name} runs {sampler} wrongly on models of {prediction} prediction")

    sigmas, times = _place(placement, schedule, steps, f"{conventions.name}, {sampler}")
    first, last = float(sigmas[0]), float(sigmas[-1])
    match placement.prior:
        case Prior.SIGMA:
            total = False
        case Prior.TOTAL:
            total = True
        case Prior.TOTAL_AT_MAX:
            total = first > schedule.sigma_max * (1 - 1e-5)
        case _:
            assert_never(placement.prior)
    options = dict(rule.options)
    if prediction is not None:
        options |= rule.options_for.get(prediction, {})
    for few, further in rule.options_below.items():
        if steps < few:
            options |= further
    if rule.one_step is not None and steps == 1:
        sampler, options = rule.one_step, {}
    notices = [rule.notice] if rule.notice else []
    if len(sigmas) - 1 != steps:
        notices.append(f"{conventions.name} runs {len(sigmas) - 1} steps when asked for {steps}")
    if first < 0.5 * schedule.sigma_max:
        notices.append(f"{conventions.name} starts this run at sigma {first:.4g}, not at {schedule.sigma_max:.4g}")
    return Resolved(
        sampler=sampler,
        sigmas=sigmas,
        prior_scale=math.sqrt(1 + first**2) if total else first,
        final_scale=1 / math.sqrt(1 + last**2),
        times=times,
        sampler_options=options,
        interval_noise=conventions.interval_noise,
        step_seed_offset=conventions.step_seed_offset,
        notices=tuple(notices),
    )


def image_to_image_steps(conventions: Conventions, steps: int, strength: float) -> tuple[int, int]:
    """(steps of the grid to make, how many of its last steps to run) for a strength in (0, 1]."""
    if not 0 < strength <= 1:
        raise RequestError(f"strength {strength} is outside (0, 1]")
    rule = conventions.image_to_image
    match rule:
        case ImageToImage.LANGEVIN:
            total, run = steps, math.ceil(steps * strength - 1e-9)
        case ImageToImage.DIFFUSERS:
            total, run = steps, min(int(steps * strength), steps)
        case ImageToImage.A1111:
            total, run = steps, int(min(strength, 0.999) * steps) + 1
        case ImageToImage.COMFYUI:
            total, run = (steps if strength > 0.9999 else int(steps / strength)), steps
        case ImageToImage.COMPVIS:
            total, run = steps, int(strength * steps)
        case _:
            assert_never(rule)
    if run < 1:
        raise RequestError(f"{steps} steps at strength {strength} are no step at all in {conventions.name}")
    return total, run


def _place(placement: Placement, schedule: NoiseSchedule, steps: int, who: str) -> tuple[Tensor, Timetable | None]:
    """The whole grid, float64 [n+1], and the timetable that goes with it."""
    if placement.discard_penultimate:
        steps += 1
    timesteps: Tensor | None = None
    if placement.curve is not None:
        levels = make_grid(placement.curve, schedule, steps, **placement.curve_options)[:-1]
        if placement.curve_ends is not None and steps == 1:
            levels = level(placement.between, schedule, spaced(placement.curve_ends, len(schedule), 1, who))
    else:
        assert placement.spacing is not None
        timesteps = spaced(placement.spacing, len(schedule), steps, who)
        levels = level(placement.between, schedule, timesteps)
    match placement.last:
        case Last.ZERO:
            sigmas = torch.cat([levels, levels.new_zeros(1)])
        case Last.SIGMA_MIN:
            sigmas = torch.cat([levels, schedule.sigmas[:1]])
        case Last.OWN:
            sigmas = levels
        case _:
            assert_never(placement.last)
    if placement.discard_penultimate:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])

    match placement.times:
        case Times.CONTINUOUS:
            return sigmas, None
        case Times.NEAREST:
            return sigmas, Timetable(schedule.sigmas, schedule.t(schedule.sigmas), schedule, nearest=True)
        case Times.TABLE:
            if timesteps is None:
                raise AssertionError(f"{who}: a curve has no timesteps of its own")
            return sigmas, Timetable(levels, timesteps, schedule)
        case Times.ROUNDED:
            return sigmas, Timetable(levels, schedule.t(levels).round(), schedule)
        case Times.TRUNCATED:
            return sigmas, Timetable(levels, torch.floor(schedule.t(levels) - 1e-3).clamp(min=0), schedule)
        case _:
            assert_never(placement.times)


def spaced(spacing: Spacing, T: int, steps: int, who: str) -> Tensor:
    """The timesteps of a run, float64, highest first."""

    def line(points: int) -> Tensor:
        return torch.linspace(T - 1, 0, points, dtype=torch.float64)

    if not 1 <= steps <= T:
        raise RequestError(f"{steps} steps are outside 1 ... {T}, the model's training timesteps ({who})")
    down = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    up = torch.arange(steps, dtype=torch.float64)
    match spacing:
        case Spacing.LEADING:
            t = down * (T // steps) + 1
        case Spacing.LEADING_OPEN:
            t = (down + 1) * (T // (steps + 1)) + 1
        case Spacing.LINSPACE:
            t = line(steps)
        case Spacing.LINSPACE_UP | Spacing.LINSPACE_UP_ROUNDED:
            t = line(steps) if steps > 1 else torch.zeros(1, dtype=torch.float64)
            if spacing is Spacing.LINSPACE_UP_ROUNDED:
                t = t.round()
        case Spacing.LINSPACE_OPEN:
            t = line(steps + 1)[:-1]
        case Spacing.LINSPACE_OPEN_ROUNDED:
            t = line(steps + 1).round()[:-1]
        case Spacing.LINSPACE_CLOSED:
            t = line(steps + 1)
        case Spacing.TRAILING:
            t = (T - up * (T / steps)).round() - 1
        case Spacing.STRIDE | Spacing.STRIDE_CLIPPED | Spacing.STRIDE_INSIDE:
            t = torch.arange(0, T, T // steps, dtype=torch.float64).flip(0) + 1
            if spacing is Spacing.STRIDE_CLIPPED:
                t = t.clamp(max=T - 1)
            elif spacing is Spacing.STRIDE_INSIDE:
                t = t[t < T]
        case Spacing.SIMPLE:
            t = T - 1 - torch.floor(up * (T / steps))
        case Spacing.DISTILLED:
            if steps > 50:
                raise RequestError(f"{steps} steps are more than the 50 that the model was distilled on ({who})")
            t = (50 - torch.floor(up * (50 / steps))) * (T // 50) - 1
        case _:
            assert_never(spacing)
    if t[0] > T - 1 or bool((t[1:] >= t[:-1]).any()):
        raise RequestError(f"{steps} steps: {who} has no such run (its timesteps leave 0 ... {T - 1} or repeat)")
    return t


def level(between: Between, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Noise levels at timesteps that may be fractional, float64."""
    if between is Between.LOG_SIGMA:
        return schedule.sigma(t)
    low = t.floor().long()
    high = t.ceil().long()
    w = t - low

    def line(table: Tensor) -> Tensor:
        return (1 - w) * table[low] + w * table[high]

    match between:
        case Between.SIGMA:
            return line(schedule.sigmas)
        case Between.LOG_ALPHA:
            return torch.sqrt(torch.expm1(-2 * line(torch.log(schedule.abar) / 2)))
        case _:
            assert_never(between)
