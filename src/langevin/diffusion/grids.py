"""Grids: which noise levels a sampler visits.

A grid is float64 [n + 1], strictly descending, and ends at 0: n intervals, so n steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from langevin.diffusion.incomplete_beta import inverse_incomplete_beta
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError

# -- evenly in timesteps ------------------------------------------------------------------------------------------


def trailing(schedule: NoiseSchedule, steps: int, *, whole: bool = True) -> Tensor:
    """t = T - i T / n - 1: starts at the largest level for any n (Lin et al. 2024, table 2)."""
    T = len(schedule)
    return schedule.sigma(_timesteps([T - i * T / steps for i in range(steps)], whole) - 1)


def leading(schedule: NoiseSchedule, steps: int, *, offset: int = 1) -> Tensor:
    """t = i floor(T / n) + offset: DDIM's spacing, which starts below the largest level (Song et al. 2021)."""
    T = len(schedule)
    stride = T // steps
    highest = (steps - 1) * stride + offset
    if stride == 0 or offset < 0 or highest > T - 1:
        raise RequestError(
            f"leading grid of {steps} steps with offset {offset} reaches timestep {highest} in steps of {stride}; "
            f"the schedule has 0 to {T - 1}: use fewer steps, offset 0, or the trailing grid"
        )
    return schedule.sigma(torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride + offset)


def linspace(schedule: NoiseSchedule, steps: int, *, whole: bool = False) -> Tensor:
    """t from T - 1 to 0 in equal steps, both ends included; one step starts at T - 1."""
    return schedule.sigma(
        _timesteps((torch.arange(steps) * -_stride(schedule, steps) + len(schedule) - 1).tolist(), whole)
    )


def quadratic(schedule: NoiseSchedule, steps: int, *, reach: float = 1.0) -> Tensor:
    """sqrt(t) from sqrt(reach (T - 1)) to 0 in equal steps: more of them at low noise.

    DDIM's quadratic spacing (Song et al. 2021, section D.2) has reach 0.8; 1 starts at the largest level.
    """
    _bounded("reach", reach, 0.0, 1.0)
    root = math.sqrt(reach * (len(schedule) - 1))
    return schedule.sigma(torch.tensor([(root * r) ** 2 for r in ramp(steps)], dtype=torch.float64))


def _stride(schedule: NoiseSchedule, steps: int) -> float:
    return (len(schedule) - 1) / (steps - 1) if steps > 1 else 0.0


def _timesteps(t: Sequence[float], whole: bool) -> Tensor:
    return torch.tensor([round(v) if whole else v for v in t], dtype=torch.float64)


# -- by a formula in sigma ----------------------------------------------------------------------------------------


def karras(
    schedule: NoiseSchedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """sigma^(1/rho) in equal steps (Karras et al. 2022, equation 5)."""
    _bounded("rho", rho, 0.1, 1000.0, above=False)  # beyond, powers of sigma overflow or all fall together
    low, high = _ends(schedule, sigma_min, sigma_max)
    return karras_levels(high, low, steps, rho)


def karras_levels(high: float, low: float, count: int, rho: float = 7.0) -> Tensor:
    """`count` levels from `high` down to `low`, evenly in sigma^(1/rho), both ends exact; float64."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return _exact_ends([(b + r * (a - b)) ** rho for r in ramp(count)], high, low)


def exponential(
    schedule: NoiseSchedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """log sigma in equal steps: the uniform logSNR grid of DPM-Solver (Lu et al. 2022)."""
    return polyexponential(schedule, steps, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    schedule: NoiseSchedule,
    steps: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """log sigma = log sigma_min + r^rho log(sigma_max / sigma_min), r from 1 to 0: k-diffusion's polynomial in log."""
    _bounded("rho", rho, 0.1, 1000.0, above=False)  # beyond, powers of sigma overflow or all fall together
    low, high = _ends(schedule, sigma_min, sigma_max)
    return _exact_ends([low * (high / low) ** (r**rho) for r in ramp(steps)], high, low)


def beta(
    schedule: NoiseSchedule,
    steps: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """Quantiles of a beta distribution over sigma, dense at both ends (Lee et al. 2024, as AUTOMATIC1111 and diffusers
    read it: linear in sigma)."""
    _bounded("alpha", alpha, 0.0, 100.0)
    _bounded("beta", beta, 0.0, 100.0)
    low, high = _ends(schedule, sigma_min, sigma_max)
    return _exact_ends([low + (high - low) * inverse_incomplete_beta(r, alpha, beta) for r in ramp(steps)], high, low)


def beta_timesteps(schedule: NoiseSchedule, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Quantiles of a beta distribution over the timesteps, at 1, 1 - 1/n, ..., 1/n and rounded: what ComfyUI calls
    "beta" (Lee et al. 2024)."""
    _bounded("alpha", alpha, 0.0, 100.0)
    _bounded("beta", beta, 0.0, 100.0)
    quantiles = [inverse_incomplete_beta(1 - i / steps, alpha, beta) for i in range(steps)]
    return schedule.sigma(_timesteps([(len(schedule) - 1) * q for q in quantiles], whole=True))


_ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""The levels published for Stable Diffusion 1.5 at 10 steps."""


def align_your_steps(schedule: NoiseSchedule, steps: int, *, keep_last: bool = False) -> Tensor:
    """The table optimised for Stable Diffusion 1.5 (Sabour et al. 2024), log-interpolated to any number of steps.

    Its 11 levels are the ends of 10 intervals; the last one is replaced by 0, so that 10 steps are the published
    table. With `keep_last` all of it is spread over the n levels above 0, as AUTOMATIC1111 does.
    """
    if not math.isclose(schedule.sigma_max, _ALIGNED[0], rel_tol=0.01):
        raise RequestError(
            f"the align_your_steps grid is a table for sigma_max {_ALIGNED[0]}; this schedule has "
            f"{schedule.sigma_max:.6g}: use another grid, for example karras"
        )
    table = torch.tensor(_ALIGNED, dtype=torch.float64)
    last = steps - 1 if keep_last else steps
    return torch.stack([_level_at(table, i / last if last else 0.0) for i in range(steps)])


# -- the registry -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridInfo:
    """One grid: how it is called, what it is, what can be set."""

    name: str
    levels: Callable[..., Tensor]
    """levels(schedule, steps, **options): the n levels above 0, float64, descending."""
    title: str

    @property
    def options(self) -> Mapping[str, Any]:
        """Every option with its default; None means the schedule's own value."""
        parameters = inspect.signature(self.levels).parameters.values()
        return MappingProxyType({p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY})


GRIDS: Mapping[str, GridInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            GridInfo("trailing", trailing, "equal steps in time, from the largest level"),
            GridInfo("leading", leading, "equal steps in time, from below the largest level (DDIM)"),
            GridInfo("linspace", linspace, "equal steps in time, both ends included"),
            GridInfo("quadratic", quadratic, "equal steps in the square root of time (DDIM)"),
            GridInfo("karras", karras, "equal steps in sigma^(1/7) (EDM)"),
            GridInfo("exponential", exponential, "equal steps in log sigma"),
            GridInfo("polyexponential", polyexponential, "a power of the step in log sigma"),
            GridInfo("beta", beta, "beta quantiles over sigma"),
            GridInfo("beta_timesteps", beta_timesteps, "beta quantiles over whole timesteps (ComfyUI's beta)"),
            GridInfo("align_your_steps", align_your_steps, "the optimised Stable Diffusion 1.5 table"),
        )
    }
)


def make_grid(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> Tensor:
    """The grid `name` with `steps` intervals on `schedule`: float64 [steps + 1], strictly descending to 0.

    Raises RequestError for an unknown grid or option, a value out of its bounds, or more steps than the grid can
    tell apart.
    """
    if name not in GRIDS:
        raise RequestError(f"grid {name!r} is unknown; choose one of {', '.join(GRIDS)}")
    info = GRIDS[name]
    for option, value in options.items():
        if option not in info.options:
            known = ", ".join(info.options) or "none"
            raise RequestError(f"option {option!r} of the {name} grid is unknown; its options: {known}")
        default = info.options[option]
        if isinstance(default, bool) != isinstance(value, bool) or not (
            isinstance(value, int | float) or (value is None and default is None)
        ):
            kind = "true or false" if isinstance(default, bool) else "a number"
            raise RequestError(f"{option} {value!r} of the {name} grid must be {kind}")
    if steps < 1:
        raise RequestError(f"steps {steps} is too small; the least is 1")
    levels = info.levels(schedule, steps, **options)
    if (levels[1:] >= levels[:-1]).any():
        raise RequestError(
            f"the {name} grid cannot tell {steps} steps apart on a schedule of {len(schedule)} timesteps; "
            "use fewer steps or the karras grid"
        )
    return torch.cat([levels, levels.new_zeros(1)])


def custom_grid(sigmas: Sequence[float] | Tensor) -> Tensor:
    """The user's own levels as a grid: float64 [n + 1]; it may end at 0 or above.

    Raises RequestError unless they are at least 2, finite, strictly descending, and positive but for a last 0.
    """
    grid = torch.as_tensor(sigmas, dtype=torch.float64).clone()
    if grid.ndim != 1 or len(grid) < 2:
        raise RequestError(f"sigmas: {grid.numel()} given; a grid needs at least 2 in one row")
    for i, (a, b) in enumerate(pairwise(grid.tolist())):
        if not (math.isfinite(a) and a > b >= 0):
            raise RequestError(f"sigmas {i} and {i + 1} are {a:g}, {b:g}; levels must be finite and fall towards 0")
    return grid


# -- parts of a grid ----------------------------------------------------------------------------------------------


def level_at(sigmas: Tensor, fraction: float) -> float:
    """The noise level at a fraction of the run: 0 is the grid's first level, 1 its last, whole steps are exact.

    Between two levels it is log-interpolated, towards a last level of 0 linearly. This is how everything that users
    state as a part of the run (a ControlNet's window, a prompt switch) becomes a threshold in sigma.
    """
    _bounded("fraction", fraction, 0.0, 1.0, above=False)
    return float(_level_at(sigmas, fraction))


def truncated(sigmas: Tensor, strength: float) -> Tensor:
    """The last part of a grid, for starting from a picture: from `level_at(1 - strength)` to the end.

    strength is in (0, 1]; 1 is the whole grid. The first level depends on the strength continuously: where it falls
    between two levels, the first interval is the rest of that one.
    """
    _bounded("strength", strength, 0.0, 1.0)
    first = _level_at(sigmas, 1 - strength)
    if first <= sigmas[-1]:
        raise RequestError(f"strength {strength:g} leaves nothing of a grid of {len(sigmas) - 1} steps; give more")
    return torch.cat([first[None], sigmas[sigmas < first]])


def _level_at(sigmas: Tensor, fraction: float) -> Tensor:
    position = fraction * (len(sigmas) - 1)
    if abs(position - round(position)) < 1e-9:  # 0.35 * 20 is 7.000000000000001
        return sigmas[round(position)]
    a, b = sigmas[math.floor(position)], sigmas[math.ceil(position)]
    w = position - math.floor(position)
    return a * (b / a) ** w if b > 0 else (1 - w) * a


# -- helpers ------------------------------------------------------------------------------------------------------


def ramp(count: int) -> list[float]:
    """From 1 to 0 in `count` equal points; one point is 1."""
    return [1 - i / (count - 1) for i in range(count)] if count > 1 else [1.0]


def _ends(schedule: NoiseSchedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    low = schedule.sigma_min if sigma_min is None else sigma_min
    high = schedule.sigma_max if sigma_max is None else sigma_max
    if not 0 < low < high < math.inf:
        raise RequestError(f"sigma_min {low:g} and sigma_max {high:g}: 0 < sigma_min < sigma_max must hold")
    return low, high


def _exact_ends(levels: list[float], high: float, low: float) -> Tensor:
    """The formula's ends without its rounding: t(sigma) of a table entry is then that entry's timestep."""
    levels[0] = high
    if len(levels) > 1:
        levels[-1] = low
    return torch.tensor(levels, dtype=torch.float64)


def _bounded(name: str, value: float, low: float, high: float, above: bool = True) -> None:
    if not ((low < value if above else low <= value) and value <= high):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise RequestError(f"{name} {value:g} is out of range; it must be {bound} and at most {high:g}")
