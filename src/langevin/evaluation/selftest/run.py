"""Which sampler is held to what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS, SamplerInfo
from langevin.errors import RequestError
from langevin.evaluation.selftest import checks
from langevin.evaluation.selftest.models import closed_form_model
from langevin.evaluation.selftest.problems import Gaussian
from langevin.evaluation.selftest.report import Row, SelftestReport
from langevin.model.diffusion_model import DiffusionModel

VARIANCE_ORDER: Mapping[str, int] = {
    "ddpm": 1,
    "euler_ancestral": 1,
    "dpm2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_3m_sde": 2,
}
"""Order of the variance of the last state, of samplers that are stochastic by default."""

MULTISTEP = ("lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc")
"""Those that remember earlier estimates and weigh them by the lengths of the steps. (The weights of plms are those of
equal steps, by design.)"""

PATH_SAMPLERS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
"""Those that follow a Brownian path."""


def run_selftest(
    samplers: Sequence[str] | None = None,
    *,
    registry: Mapping[str, SamplerInfo] = SAMPLERS,
    model: Callable[[Prediction], DiffusionModel] = closed_form_model,
    progress: Callable[[str], None] | None = None,
) -> SelftestReport:
    """Measures the named samplers (default: all, and the five prediction types).

    registry: what is tested; model: gives the model of a prediction type. Tests put faulty ones there. progress is
    told the name of each subject before it is measured. Raises RequestError for an unknown sampler.
    """
    for name in samplers or ():
        if name not in registry:
            raise RequestError(f"sampler {name!r} is unknown; there are: {', '.join(registry)}")
    started = time.perf_counter()
    rows: list[Row] = []
    with torch.no_grad():
        for name in registry if samplers is None else samplers:
            if progress is not None:
                progress(name)
            rows += measure(registry[name])
        if samplers is None:
            for prediction in Prediction:
                if progress is not None:
                    progress(f"{prediction} model")
                rows += checks.model_matches(prediction, model(prediction), registry["heun"])
    return SelftestReport(tuple(rows), time.perf_counter() - started)


def measure(info: SamplerInfo) -> Iterator[Row]:
    """Every check that applies to one sampler."""
    name = info.name
    if name == "lcm":
        # Not a solver: for the consistency function it is made for, every state has the exact distribution.
        yield from checks.exact_steps(name, info, {})
        yield from checks.exact_variance(name, info, {}, Gaussian(std=0.7))
        return
    yield from checks.exact_steps(name, info, {})
    still = {"eta": 0.0} if "eta" in info.options else {}
    if name not in ("ddpm", "restart"):
        label = f"{name}, eta=0" if info.stochastic else name
        yield from checks.flow_order(label, info, still, info.order)
        if name in MULTISTEP:
            yield from checks.flow_order(label, info, still, info.order, even=False)
    if name in VARIANCE_ORDER:
        yield from checks.variance_order(name, info, lambda n: {}, VARIANCE_ORDER[name])
    if name in PATH_SAMPLERS:
        yield from checks.path_order(name, info)
    yield from _variants(info)
    yield from checks.mixture_run(name, info, {})


def _variants(info: SamplerInfo) -> Iterator[Row]:
    """Options that change the formula."""
    match info.name:
        case "ddpm":
            yield from checks.exact_variance("ddpm, fixed_large", info, {"variance": "fixed_large"}, Gaussian(std=1.0))
            yield from checks.exact_variance("ddpm, learned", info, {"variance": "learned"}, Gaussian(std=0.7))
        case "ddim":
            yield from checks.exact_steps("ddim, eta=1", info, {"eta": 1.0})
            yield from checks.variance_order("ddim, eta=1", info, lambda n: {"eta": 1.0}, 1)
        case "heun":
            # gamma = 1 / n for every n: noise that shrinks with the steps, as in the paper.
            yield from checks.variance_order("heun, s_churn=1", info, lambda n: {"s_churn": 1.0}, 2)
        case "restart":
            # Parts of the grid whose own steps shrink with it.
            yield from checks.variance_order(
                "restart, 2 times", info, lambda n: {"segments": ((0.3, 1.0, n // 2, 2),)}, 2
            )
        case "dpmpp_2m_sde":
            heun = {"eta": 0.0, "solver": "heun"}
            yield from checks.flow_order("dpmpp_2m_sde heun, eta=0", info, heun, 2)
        case "lms":
            yield from checks.flow_order("lms, order=1", info, {"order": 1}, 1)
        case "plms":
            # As diffusers does it: a weighted mean of velocities belongs to no one state, and order 1 is what is left.
            yield from checks.flow_order("plms, remember=v", info, {"remember": "v"}, 1)
        case "unipc":
            full = {"lower_order_final": False}
            yield from checks.flow_order("unipc, full order", info, full, 3)
            yield from checks.flow_order("unipc bh1, full order", info, {**full, "variant": "bh1"}, 3)
            yield from checks.flow_order("unipc 3, full order", info, {**full, "order": 3}, 3)
        case _:
            pass
