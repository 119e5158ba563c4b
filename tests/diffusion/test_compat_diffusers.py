"""`compat diffusers` gives the very latents of diffusers' schedulers, for a cheap network in place of a U-Net."""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langevin.diffusion.compat import resolve
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers on numpy 2

SEEDS = (3, 4)
SHAPE = (4, 5, 6)
STEPS = (1, 2, 5, 13, 20)
TOLERANCE = 1e-4

PUBLISHED = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
"""The scheduler configuration published with Stable Diffusion 1.5."""


class Network(nn.Module):
    """A fixed non-linear function of z and t; epsilon-like, in that it is near z at high noise."""

    def __init__(self, dtype: torch.dtype, doubled: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.doubled = doubled
        self.seen: list[float] = []

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> Tensor:
        self.seen.append(float(t.flatten()[0]))
        phase = t.to(z.dtype).view(-1, 1, 1, 1) * 0.01
        out = 0.9 * torch.tanh(0.8 * z) + 0.15 * torch.sin(2 * z.roll(1, -1) + phase) + 0.1 * torch.cos(3 * phase)
        if self.doubled:
            out = torch.cat([out, torch.sin(z + phase)], 1)
        return out * self.weight


def theirs(scheduler: Any, network: Network, steps: int, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """The loop of a diffusers pipeline: the state after each call of the network."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    z = torch.cat([torch.randn((1, *SHAPE), generator=g) for g in generators])
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = lambda *_: torch.cat([torch.randn((1, *SHAPE), generator=g) for g in generators])
    else:
        options["generator"] = generators
    takes = inspect.signature(scheduler.step).parameters
    options = {name: value for name, value in options.items() if name in takes}
    z = (z * scheduler.init_noise_sigma).to(dtype)
    states = []
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(z, t), t.expand(len(z)))
        z = scheduler.step(out, t, z, **options).prev_sample
        states.append(z)
    return states


def ours(
    sampler: str,
    network: Network,
    prediction: Prediction,
    steps: int,
    dtype: torch.dtype,
    *,
    compat: str = "diffusers",
    grid: str | None = None,
    ends_at_sigma_min: bool = False,
    **options: Any,
) -> list[Tensor]:
    """The state after each step, the last one as it is decoded."""
    schedule = NoiseSchedule.scaled_linear()
    run = resolve(compat, sampler, schedule, steps, grid=grid, prediction=prediction)
    if ends_at_sigma_min:
        run.sigmas[-1] = schedule.sigma_min
        run = replace(run, final_scale=1 / math.hypot(1, schedule.sigma_min))
    model = DiffusionModel(network, schedule, prediction, times=run.times, learned_variance=network.doubled)
    noise = Noise(SEEDS, SHAPE, dtype=dtype, interval=run.interval_noise)
    x = run.prior_scale * noise.initial()

    def denoise(x: Tensor, sigma: float) -> Any:
        return model.denoise(x, sigma, Conditioning())

    options = {**run.sampler_options, **options}
    states = [step.x for step in SAMPLERS[run.sampler].run(denoise, x, run.sigmas, noise, **options)]
    return [*states[:-1], states[-1] * run.final_scale]


def scheduler(name: str, **config: Any) -> Any:
    if name == "DPMSolverSDEScheduler":
        # Its module imports torchsde for the Brownian path, which the test replaces.
        sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
        from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

        return DPMSolverSDEScheduler.from_config(PUBLISHED, **config)
    return getattr(diffusers, name).from_config(PUBLISHED, **config)


CASES: Mapping[str, tuple[str, str, str | None, dict[str, Any], dict[str, Any]]] = {
    # name: (our sampler, their class, grid, their configuration, options of a run for both)
    "ddim": ("ddim", "DDIMScheduler", None, {}, {}),
    "ddim eta 1": ("ddim", "DDIMScheduler", None, {}, {"eta": 1.0}),
    "ddim eta 0.5": ("ddim", "DDIMScheduler", None, {}, {"eta": 0.5}),
    "ddpm": ("ddpm", "DDPMScheduler", None, {}, {}),
    "ddpm linspace": ("ddpm", "DDPMScheduler", "linspace", {"timestep_spacing": "linspace"}, {}),
    "ddpm trailing": ("ddpm", "DDPMScheduler", "trailing", {"timestep_spacing": "trailing"}, {}),
    "plms": ("plms", "PNDMScheduler", None, {}, {}),
    "euler": ("euler", "EulerDiscreteScheduler", None, {}, {}),
    "euler leading": ("euler", "EulerDiscreteScheduler", "leading", {"timestep_spacing": "leading"}, {}),
    "euler trailing": ("euler", "EulerDiscreteScheduler", "trailing", {"timestep_spacing": "trailing"}, {}),
    "euler karras": ("euler", "EulerDiscreteScheduler", "karras", {"use_karras_sigmas": True}, {}),
    "euler exponential": ("euler", "EulerDiscreteScheduler", "exponential", {"use_exponential_sigmas": True}, {}),
    "euler beta": ("euler", "EulerDiscreteScheduler", "beta", {"use_beta_sigmas": True}, {}),
    "euler_ancestral": ("euler_ancestral", "EulerAncestralDiscreteScheduler", None, {}, {}),
    "heun": ("heun", "HeunDiscreteScheduler", None, {}, {}),
    "heun karras": ("heun", "HeunDiscreteScheduler", "karras", {"use_karras_sigmas": True}, {}),
    "dpm2": ("dpm2", "KDPM2DiscreteScheduler", None, {}, {}),
    "dpm2 karras": ("dpm2", "KDPM2DiscreteScheduler", "karras", {"use_karras_sigmas": True}, {}),
    "dpm2_ancestral": ("dpm2_ancestral", "KDPM2AncestralDiscreteScheduler", None, {}, {}),
    "lms": ("lms", "LMSDiscreteScheduler", None, {}, {}),
    "lms karras": ("lms", "LMSDiscreteScheduler", "karras", {"use_karras_sigmas": True}, {}),
    "dpmpp_sde": ("dpmpp_sde", "DPMSolverSDEScheduler", None, {}, {}),
    "dpmpp_2m": ("dpmpp_2m", "DPMSolverMultistepScheduler", None, {}, {}),
    "dpmpp_2m leading": ("dpmpp_2m", "DPMSolverMultistepScheduler", "leading", {"timestep_spacing": "leading"}, {}),
    "dpmpp_2m trailing": ("dpmpp_2m", "DPMSolverMultistepScheduler", "trailing", {"timestep_spacing": "trailing"}, {}),
    "dpmpp_2m karras": ("dpmpp_2m", "DPMSolverMultistepScheduler", "karras", {"use_karras_sigmas": True}, {}),
    "dpmpp_2m exponential": (
        "dpmpp_2m",
        "DPMSolverMultistepScheduler",
        "exponential",
        {"use_exponential_sigmas": True},
        {},
    ),
    "dpmpp_2m beta": ("dpmpp_2m", "DPMSolverMultistepScheduler", "beta", {"use_beta_sigmas": True}, {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", "DPMSolverMultistepScheduler", None, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpmpp_2m_sde karras": (
        "dpmpp_2m_sde",
        "DPMSolverMultistepScheduler",
        "karras",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        {},
    ),
    "unipc": ("unipc", "UniPCMultistepScheduler", None, {}, {}),
    "unipc order 3": ("unipc", "UniPCMultistepScheduler", None, {"solver_order": 3}, {"order": 3}),
    "ddim trailing": ("ddim", "DDIMScheduler", "trailing", {"timestep_spacing": "trailing"}, {}),
    "plms trailing": ("plms", "PNDMScheduler", "trailing", {"timestep_spacing": "trailing"}, {}),
    "unipc karras": ("unipc", "UniPCMultistepScheduler", "karras", {"use_karras_sigmas": True}, {}),
    "lcm": ("lcm", "LCMScheduler", None, {}, {}),
}


def refused(case: str, steps: int) -> bool:
    """Its list of timesteps and its steps, which are always T // N, disagree."""
    return case in ("ddim trailing", "plms trailing") and 1000 % steps != 0


@pytest.mark.parametrize(("case", "steps"), [(c, n) for c in CASES for n in STEPS if refused(c, n)])
def test_inconsistent_runs_are_refused(case: str, steps: int) -> None:
    sampler, _, grid, _, _ = CASES[case]
    with pytest.raises(RequestError, match="divides 1000"):
        resolve("diffusers", sampler, NoiseSchedule.scaled_linear(), steps, grid=grid)


ILL_CONDITIONED = {("heun", 2), ("dpm2", 2), ("dpm2_ancestral", 2)}
"""One step from sigma 14.6 to 0.03: the slope at its end or middle is a difference of nearly equal numbers divided by
a small sigma and multiplied by a large step. Two float32 programs that do the same sums in another order differ."""


def without_cancellation(reference: Any) -> None:
    """The table that diffusers has for dpm2_ancestral, again from its own levels. It takes sigma_down as the root of
    s1^2 - up^2, which from 14.6 to 0.03 leaves two of the digits of float32, and the processor decides about the rest.
    It is s1^2 / s, and the middle between s and it in the logarithm is s1."""
    original = reference.set_timesteps

    def set_timesteps(steps: int) -> None:
        original(steps)
        levels = torch.cat([reference.sigmas[:1], reference.sigmas[1:-1:2]])
        down, middle = levels[1:] ** 2 / levels[:-1], levels[1:].clone()
        middle[-1] = 0.0
        for name, values in (("sigmas_down", down), ("sigmas_interpol", middle)):
            table = torch.cat([values[:1], values[1:].repeat_interleave(2)])
            kept = getattr(reference, name)
            setattr(reference, name, torch.cat([table, kept[len(table) :]]))

    reference.set_timesteps = set_timesteps


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
@pytest.mark.parametrize(("case", "steps"), [(c, n) for c in CASES for n in STEPS if not refused(c, n)])
def test_same_latents(case: str, prediction: Prediction, steps: int) -> None:
    sampler, name, grid, config, options = CASES[case]
    kind = {Prediction.EPSILON: "epsilon", Prediction.V: "v_prediction"}[prediction]
    reference = scheduler(name, prediction_type=kind, **config)
    if (sampler, steps) == ("dpm2_ancestral", 2):
        without_cancellation(reference)
    network = Network(torch.float32)
    a = theirs(reference, network, steps, torch.float32, **options)[-1]
    their_times, network.seen = network.seen, []
    b = ours(sampler, network, prediction, steps, torch.float32, grid=grid, **options)[-1]
    assert len(network.seen) == len(their_times)
    # The midpoints of dpm2_ancestral lie on grid levels, where it interpolates in log sigma and we in sigma.
    assert network.seen == pytest.approx(their_times, abs=0.05 if sampler == "dpm2_ancestral" else 2e-3)
    assert (a - b).abs().max() <= (3e-3 if (sampler, steps) in ILL_CONDITIONED else TOLERANCE)


@pytest.mark.parametrize("case", [c for c in CASES if not SAMPLERS[CASES[c][0]].stochastic and not CASES[c][4]])
def test_closer_in_float64(case: str) -> None:
    """What is left there is the float32 of diffusers' own tables."""
    sampler, name, grid, config, _ = CASES[case]
    for steps in (5, 20):
        a = theirs(
            scheduler(name, prediction_type="v_prediction", **config), Network(torch.float64), steps, torch.float64
        )
        b = ours(sampler, Network(torch.float64), Prediction.V, steps, torch.float64, grid=grid)
        assert (a[-1] - b[-1]).abs().max() <= 1e-5


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_variances_but_for_the_last_noise(variance: str, steps: int) -> None:
    """diffusers adds noise at the last step too, whenever the last timestep is not 0; the papers and we do not."""
    doubled = variance == "learned_range"
    network = Network(torch.float32, doubled)
    reference = scheduler("DDPMScheduler", variance_type=variance)
    a = theirs(reference, network, steps, torch.float32)
    ours_name = {"fixed_large": "fixed_large", "learned_range": "learned"}[variance]
    b = ours("ddpm", network, Prediction.EPSILON, steps, torch.float32, variance=ours_name)
    sigmas = resolve("diffusers", "ddpm", NoiseSchedule.scaled_linear(), steps).sigmas
    for z, x, sigma in zip(a[:-1], b[:-1], sigmas[1:-1], strict=True):
        assert (z - x / torch.sqrt(1 + sigma**2)).abs().max() <= TOLERANCE
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    for _ in range(steps + 1):
        noise = torch.cat([torch.randn((1, *SHAPE), generator=g) for g in generators])
    beta = 1 - 1 / (1 + sigmas[-2] ** 2)
    if doubled:
        previous = a[-2] if steps > 1 else first_noise()
        fraction = (network(previous, torch.ones(2))[:, 4:] + 1) / 2
        deviation = torch.exp((fraction * torch.log(beta) + (1 - fraction) * math.log(1e-20)) / 2)
    else:
        deviation = torch.sqrt(beta)
    assert (a[-1] - b[-1] - deviation * noise).abs().max() <= TOLERANCE


def first_noise() -> Tensor:
    return torch.cat([torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("sampler", "name", "config", "options"),
    [
        # bh1 to sigma 0 is infinity times zero, NaN, in diffusers.
        ("unipc", "UniPCMultistepScheduler", {"solver_type": "bh1"}, {"variant": "bh1"}),
        ("unipc", "UniPCMultistepScheduler", {}, {}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"lower_order_final": False}, {}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"euler_at_final": True}, {"first_order_final": True}),
        (
            "dpmpp_2m_sde",
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "lower_order_final": False},
            {"solver": "heun"},
        ),
    ],
)
def test_runs_that_end_above_zero(
    sampler: str, name: str, config: dict[str, Any], options: dict[str, Any], steps: int
) -> None:
    network = Network(torch.float32)
    reference = scheduler(name, final_sigmas_type="sigma_min", **config)
    a = theirs(reference, network, steps, torch.float32)[-1]
    b = ours(sampler, network, Prediction.EPSILON, steps, torch.float32, ends_at_sigma_min=True, **options)[-1]
    assert (a - b).abs().max() <= TOLERANCE


def test_the_times_and_levels_matter() -> None:
    """The comparison above can fail: our own conventions give another picture, and so does a time that is not
    rounded."""
    network = Network(torch.float32)
    a = theirs(scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True), network, 13, torch.float32)[-1]
    same = ours("dpmpp_2m", network, Prediction.EPSILON, 13, torch.float32, grid="karras")[-1]
    plain = ours("dpmpp_2m", network, Prediction.EPSILON, 13, torch.float32, grid="karras", compat="langevin")[-1]
    assert (a - same).abs().max() < 1e-4 < 1e-2 < (a - plain).abs().max()

    v = ours("plms", network, Prediction.V, 13, torch.float32)[-1]
    epsilon = ours("plms", network, Prediction.V, 13, torch.float32, remember="epsilon")[-1]
    assert (v - epsilon).abs().max() > 1e-2
