"""Every sampler once: its name, order, options and source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate, Step
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers.first_order import Variance, ddim, ddpm, euler, euler_ancestral, lcm
from langevin.diffusion.samplers.multistep import (
    Residual,
    Slope,
    Solver,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    lms,
    plms,
    unipc,
)
from langevin.diffusion.samplers.single_step import (
    dpm2,
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    heun,
    restart,
    segments_fault,
)
from langevin.errors import RequestError

Sampler = Callable[..., Iterator[Step]]
"""sampler(denoiser, x, sigmas, noise, **options): x is B C H W at level sigmas[0]; yields a Step per interval."""


@dataclass(frozen=True)
class Option:
    """One option of a sampler."""

    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    """The allowed values, where they are names."""
    low: float = -math.inf
    high: float = math.inf
    fault: Callable[[Any], str | None] | None = None
    """What is wrong with a value, where a list or two bounds cannot say it; None for a good one."""

    def check(self, sampler: str, name: str, value: Any) -> None:
        """Raises RequestError where the value is not allowed."""
        if self.choices and value not in self.choices:
            raise RequestError(f"{name} {value!r} of {sampler} is unknown; choose one of {', '.join(self.choices)}")
        if self.fault is not None and (fault := self.fault(value)) is not None:
            raise RequestError(f"{name} of {sampler}: {fault}")
        if isinstance(self.default, bool) and not isinstance(value, bool):
            raise RequestError(f"{name} {value!r} of {sampler} must be true or false")
        if isinstance(self.default, int | float) and not isinstance(self.default, bool):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RequestError(f"{name} {value!r} of {sampler} must be a number")
            if isinstance(self.default, int) and value != int(value):
                raise RequestError(f"{name} {value!r} of {sampler} must be a whole number")
            if not self.low <= value <= self.high:
                raise RequestError(
                    f"{name} {value:g} of {sampler} is out of range; it must be from {self.low:g} to {self.high:g}"
                )


@dataclass(frozen=True)
class SamplerInfo:
    """One sampler, and all that is known of it without running it."""

    name: str
    function: Sampler
    order: int
    """Order of convergence of the final x as the steps shrink, on smooth grids that end above 0; for stochastic
    samplers with their noise off. 0: it does not converge with an ordinary denoiser."""
    stochastic: bool
    """It draws noise during sampling, with its default options."""
    title: str
    paper: str
    options: Mapping[str, Option]

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises RequestError for an unknown option or a value that is not allowed."""
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise RequestError(f"option {name!r} of sampler {self.name} is unknown; its options: {known}")
            self.options[name].check(self.name, name, value)

    def run(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, **options: Any) -> Iterator[Step]:
        """`function` with its options checked at once, not at the first step."""
        self.check(options)
        return self.function(denoiser, x, sigmas, noise, **options)

    def calls(self, steps: int, **options: Any) -> int:
        """Denoiser calls for `steps` intervals that end at 0, from 14.6 to 0.03 as in Stable Diffusion."""
        levels = torch.logspace(math.log10(14.6), math.log10(0.03), steps, dtype=torch.float64)
        return self.calls_on(torch.cat([levels, levels.new_zeros(1)]), **options)

    def calls_on(self, sigmas: Tensor, **options: Any) -> int:
        """Denoiser calls on this very grid: counted, by running the sampler on a single number."""
        count = 0

        def counting(x: Tensor, sigma: float) -> Estimate:
            nonlocal count
            count += 1
            return Estimate(torch.zeros_like(x), torch.zeros_like(x))

        final(self.run(counting, torch.zeros(1, 1, 1, 1), sigmas, Noise([0], (1, 1, 1), interval="stream"), **options))
        return count


def get_sampler(name: str) -> SamplerInfo:
    """The sampler of that name; RequestError where there is none."""
    if name not in SAMPLERS:
        raise RequestError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def final(steps: Iterable[Step]) -> Tensor:
    """The x after the last step, B C H W."""
    x = None
    for step in steps:
        x = step.x
    if x is None:
        raise ValueError("the sampler took no step")
    return x


_ETA = Option(1.0, "part of the noise of the reverse SDE; 0 is deterministic", low=0.0, high=10.0)
_S_NOISE = Option(1.0, "factor of the noise that is added", low=0.0, high=10.0)
_FIRST_ORDER_FINAL = Option(False, "the last step is of first order also where the grid ends above 0")


SAMPLERS: Mapping[str, SamplerInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            SamplerInfo(
                "ddpm",
                ddpm,
                1,
                True,
                "DDPM",
                "Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672",
                {"variance": Option(Variance.FIXED_SMALL, "variance of the reverse step", choices=tuple(Variance))},
            ),
            SamplerInfo(
                "ddim",
                ddim,
                1,
                False,
                "DDIM",
                "Song et al. 2021, arXiv:2010.02502",
                {"eta": Option(0.0, "0 is deterministic, 1 is DDPM", low=0.0, high=1.0)},
            ),
            SamplerInfo("euler", euler, 1, False, "Euler", "Karras et al. 2022, arXiv:2206.00364", {}),
            SamplerInfo(
                "euler_ancestral",
                euler_ancestral,
                1,
                True,
                "Euler ancestral",
                "k-diffusion (Crowson 2022), after Song et al. 2021, arXiv:2010.02502",
                {"eta": _ETA, "s_noise": _S_NOISE},
            ),
            SamplerInfo(
                "heun",
                heun,
                2,
                False,
                "Heun",
                "Karras et al. 2022, arXiv:2206.00364",
                {
                    "s_churn": Option(0.0, "noise added over the whole run, in steps of gamma", low=0.0),
                    "s_tmin": Option(0.0, "lowest sigma with churn", low=0.0),
                    "s_tmax": Option(math.inf, "highest sigma with churn", low=0.0),
                    "s_noise": _S_NOISE,
                },
            ),
            SamplerInfo(
                "dpm2", dpm2, 2, False, "DPM2", "k-diffusion (Crowson 2022), after Lu et al. 2022, arXiv:2206.00927", {}
            ),
            SamplerInfo(
                "dpm2_ancestral",
                dpm2_ancestral,
                2,
                True,
                "DPM2 ancestral",
                "k-diffusion (Crowson 2022), after Lu et al. 2022, arXiv:2206.00927",
                {"eta": _ETA, "s_noise": _S_NOISE},
            ),
            SamplerInfo(
                "lms",
                lms,
                2,
                False,
                "LMS",
                "k-diffusion (Crowson 2022): Adams-Bashforth on unequal steps",
                {"order": Option(4, "how many slopes are used", low=1, high=4)},
            ),
            SamplerInfo(
                "plms",
                plms,
                2,
                False,
                "PLMS",
                "Liu et al. 2022, arXiv:2202.09778",
                {"remember": Option(Slope.EPSILON, "what is extrapolated from step to step", choices=tuple(Slope))},
            ),
            SamplerInfo(
                "dpmpp_2s_ancestral",
                dpmpp_2s_ancestral,
                2,
                True,
                "DPM++ 2S ancestral",
                "Lu et al. 2022, arXiv:2211.01095",
                {"eta": _ETA, "s_noise": _S_NOISE},
            ),
            SamplerInfo(
                "dpmpp_sde",
                dpmpp_sde,
                2,
                True,
                "DPM++ SDE",
                "Lu et al. 2022, arXiv:2211.01095",
                {
                    "eta": _ETA,
                    "s_noise": _S_NOISE,
                    "r": Option(
                        0.5, "where in the step, in log sigma, the second estimate is made", low=0.05, high=1.0
                    ),
                },
            ),
            SamplerInfo(
                "dpmpp_2m",
                dpmpp_2m,
                2,
                False,
                "DPM++ 2M",
                "Lu et al. 2022, arXiv:2211.01095",
                {"first_order_final": _FIRST_ORDER_FINAL},
            ),
            SamplerInfo(
                "dpmpp_2m_sde",
                dpmpp_2m_sde,
                2,
                True,
                "DPM++ 2M SDE",
                "Lu et al. 2022, arXiv:2211.01095",
                {
                    "eta": _ETA,
                    "s_noise": _S_NOISE,
                    "solver": Option(Solver.MIDPOINT, "how the second-order term is integrated", choices=tuple(Solver)),
                    "first_order_final": _FIRST_ORDER_FINAL,
                },
            ),
            SamplerInfo(
                "dpmpp_3m_sde",
                dpmpp_3m_sde,
                2,
                True,
                "DPM++ 3M SDE",
                "Lu et al. 2022, arXiv:2211.01095",
                {"eta": _ETA, "s_noise": _S_NOISE},
            ),
            SamplerInfo(
                "unipc",
                unipc,
                2,
                False,
                "UniPC",
                "Zhao et al. 2023, arXiv:2302.04867",
                {
                    "order": Option(2, "order of the predictor", low=1, high=3),
                    "variant": Option(Residual.BH2, "the function B(h)", choices=tuple(Residual)),
                    "lower_order_final": Option(True, "the last steps are of falling order"),
                },
            ),
            SamplerInfo("lcm", lcm, 0, True, "LCM", "Luo et al. 2023, arXiv:2310.04378", {}),
            SamplerInfo(
                "restart",
                restart,
                2,
                True,
                "Restart",
                "Xu et al. 2023, arXiv:2306.14878",
                {
                    "segments": Option(
                        ((0.1, 2.0, 9, 1),),
                        "each (low sigma, high sigma, steps, times)",
                        fault=segments_fault,
                    ),
                    "s_noise": _S_NOISE,
                },
            ),
        )
    }
)
