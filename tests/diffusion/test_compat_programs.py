"""The other presets, against each program's own formulae written down again in float64.

Nothing here uses our grids or samplers: k-diffusion's denoiser with its log interpolation, the original DDIM and PLMS
in variance-preserving coordinates, DPM-Solver++ in lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langevin.diffusion.compat import COMPAT, ImageToImage, Times, image_to_image_steps, resolve
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel

SEED = 11
SHAPE = (2, 4, 4)

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ABAR = np.cumprod(1 - BETAS)
SIGMAS = np.sqrt((1 - ABAR) / ABAR)
LOG_SIGMAS = np.log(SIGMAS)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen: list[float] = []

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> Tensor:
        self.seen.append(float(t.flatten()[0]))
        phase = t.to(torch.float64).view(-1, 1, 1, 1) * 0.01
        return 0.9 * torch.tanh(0.8 * z) + 0.15 * torch.sin(2 * z.roll(1, -1) + phase) + 0.1 * torch.cos(3 * phase)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def first_noise() -> Tensor:
    return torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(SEED)).double()


def ours(
    compat: str, sampler: str, steps: int, *, grid: str | None = None, prediction: Prediction = Prediction.EPSILON
) -> tuple[Tensor, list[float]]:
    schedule = NoiseSchedule.scaled_linear()
    run = resolve(compat, sampler, schedule, steps, grid=grid, prediction=prediction)
    network = Network()
    model = DiffusionModel(network, schedule, prediction, times=run.times)
    noise = Noise(
        [SEED], SHAPE, dtype=torch.float64, interval=run.interval_noise, step_seed_offset=run.step_seed_offset
    )
    x = run.prior_scale * noise.initial()
    steps_ = SAMPLERS[run.sampler].run(
        lambda x, s: model.denoise(x, s, Conditioning()), x, run.sigmas, noise, **run.sampler_options
    )
    for step in steps_:
        x = step.x
    return x * run.final_scale, network.seen


# -- k-diffusion ----------------------------------------------------------------------------------------------------


def log_time(sigma: float) -> float:
    return float(np.interp(math.log(sigma), LOG_SIGMAS, np.arange(1000)))


def nearest_time(sigma: float) -> float:
    return float(np.abs(math.log(sigma) - LOG_SIGMAS).argmin())


def k_denoiser(network: Network, time: Callable[[float], float], v: bool = False) -> Callable[[Tensor, float], Tensor]:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        root = math.sqrt(sigma**2 + 1)
        t = torch.tensor([time(sigma)], dtype=torch.float32)
        out = network(x / root, t)
        return x / root**2 - sigma / root * out if v else x - sigma * out

    return denoise


def k_uniform(steps: int) -> list[float]:
    t = np.linspace(999, 0, steps)
    return [*np.exp(np.interp(t, np.arange(1000), LOG_SIGMAS)), 0.0]


def k_karras(steps: int, rho: float = 7.0) -> list[float]:
    ramp = np.linspace(0, 1, steps)
    low, high = SIGMAS[0] ** (1 / rho), SIGMAS[-1] ** (1 / rho)
    return [*((high + ramp * (low - high)) ** rho), 0.0]


def k_exponential(steps: int) -> list[float]:
    return [*np.exp(np.linspace(LOG_SIGMAS[-1], LOG_SIGMAS[0], steps)), 0.0]


def k_euler(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    for s, s1 in pairwise(sigmas):
        x = x + (x - denoise(x, s)) / s * (s1 - s)
    return x


def k_euler_ancestral(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float], draw: Callable[[], Tensor]
) -> Tensor:
    for s, s1 in pairwise(sigmas):
        up = min(s1, math.sqrt(s1**2 * (s**2 - s1**2) / s**2))
        down = math.sqrt(s1**2 - up**2)
        x = x + (x - denoise(x, s)) / s * (down - s)
        if s1 > 0:
            x = x + draw() * up
    return x


def k_dpm2(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    for s, s1 in pairwise(sigmas):
        d = (x - denoise(x, s)) / s
        if s1 == 0:
            x = x + d * (s1 - s)
        else:
            middle = math.exp((math.log(s) + math.log(s1)) / 2)
            halfway = x + d * (middle - s)
            x = x + (halfway - denoise(halfway, middle)) / middle * (s1 - s)
    return x


def k_dpmpp_2m(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    old: Tensor | None = None
    for i in range(len(sigmas) - 1):
        d = denoise(x, sigmas[i])
        t, t1 = -math.log(sigmas[i]), (math.inf if sigmas[i + 1] == 0 else -math.log(sigmas[i + 1]))
        h = t1 - t
        if old is None or sigmas[i + 1] == 0:
            x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * d
        else:
            r = (t + math.log(sigmas[i - 1])) / h
            x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * ((1 + 1 / (2 * r)) * d - 1 / (2 * r) * old)
        old = d
    return x


def stream(offset: int | None) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(SEED + (offset or 0))
    if offset is None:
        torch.randn((1, *SHAPE), generator=generator)
    return lambda: torch.randn((1, *SHAPE), generator=generator).double()


def close(a: Tensor, b: Tensor) -> bool:
    # Timesteps pass through float32, as they do on the way to any network.
    return float((a - b).abs().max()) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 20])
def test_a1111_k_samplers(steps: int) -> None:
    denoise = k_denoiser(network := Network(), log_time)
    x = first_noise()
    uniform, karras = k_uniform(steps), k_karras(steps)
    assert close(k_euler(denoise, x * uniform[0], uniform), ours("a1111", "euler", steps)[0])
    assert close(
        k_euler_ancestral(denoise, x * uniform[0], uniform, stream(None)), ours("a1111", "euler_ancestral", steps)[0]
    )
    network.seen = []
    reference = k_dpmpp_2m(denoise, x * karras[0], karras)
    result, seen = ours("a1111", "dpmpp_2m", steps)
    assert close(reference, result)
    assert seen == pytest.approx(network.seen, abs=1e-3)
    assert any(t != round(t) for t in seen) or steps <= 2  # fractional times reach the network
    shortened = k_karras(steps + 1)
    shortened = [*shortened[:-2], 0.0]
    assert close(k_dpm2(denoise, x * shortened[0], shortened), ours("a1111", "dpm2", steps)[0])
    v = k_denoiser(Network(), log_time, v=True)
    assert close(k_dpmpp_2m(v, x * karras[0], karras), ours("a1111", "dpmpp_2m", steps, prediction=Prediction.V)[0])


def k_simple(steps: int) -> list[float]:
    return [*(SIGMAS[-(1 + int(i * 1000 / steps))] for i in range(steps)), 0.0]


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 20])
def test_comfyui(steps: int) -> None:
    denoise = k_denoiser(network := Network(), nearest_time)
    x = first_noise()
    simple, karras = k_simple(steps), k_karras(steps)
    start = x * math.sqrt(1 + SIGMAS[-1] ** 2)
    assert close(k_euler(denoise, start, simple), ours("comfyui", "euler", steps)[0])
    assert close(k_euler(denoise, start, simple), ours("comfyui", "ddim", steps)[0])
    assert close(k_euler_ancestral(denoise, start, simple, stream(1)), ours("comfyui", "euler_ancestral", steps)[0])
    network.seen = []
    reference = k_dpmpp_2m(denoise, start, karras)
    result, seen = ours("comfyui", "dpmpp_2m", steps, grid="karras")
    assert close(reference, result)
    assert seen == network.seen  # whole ones, although sigma lies between
    shortened = [*k_simple(steps + 1)[:-2], 0.0]
    assert close(k_dpm2(denoise, start, shortened), ours("comfyui", "dpm2", steps)[0])
    exponential = k_exponential(steps)
    if steps > 1:
        assert close(k_euler(denoise, start, exponential), ours("comfyui", "euler", steps, grid="exponential")[0])


def test_comfyui_scales_by_sigma_below_the_largest() -> None:
    run = resolve("comfyui", "euler", NoiseSchedule.scaled_linear(), 13, grid="ddim_uniform")
    stride = [SIGMAS[t] for t in range(1, 1000, 1000 // 13)][::-1]
    assert run.sigmas.tolist() == pytest.approx([*stride, 0.0])
    assert run.prior_scale == pytest.approx(stride[0])
    assert any("14 steps" in notice for notice in run.notices)


# -- the original DDIM, PLMS and DPM-Solver ---------------------------------------------------------------------------


def ldm_timesteps(steps: int) -> list[int]:
    return [t + 1 for t in range(0, 1000, 1000 // steps)]


def ldm_ddim(network: Network, z: Tensor, ascending: list[int], last: float | None) -> Tensor:
    """With `last`: abar after the lowest timestep; without: the lowest timestep is not run."""
    levels = ascending[::-1]
    for i, t in enumerate(levels):
        if i + 1 < len(levels):
            after = ABAR[levels[i + 1]]
        elif last is not None:
            after = last
        else:
            break
        e = network(z, torch.tensor([float(t)]))
        x0 = (z - math.sqrt(1 - ABAR[t]) * e) / math.sqrt(ABAR[t])
        z = math.sqrt(after) * x0 + math.sqrt(1 - after) * e
    return z


def ldm_plms(network: Network, z: Tensor, ascending: list[int], last: float | None, v: bool = False) -> Tensor:
    levels = ascending[::-1]
    old: list[Tensor] = []

    def epsilon(z: Tensor, t: int) -> Tensor:
        out = network(z, torch.tensor([float(t)]))
        return math.sqrt(ABAR[t]) * out + math.sqrt(1 - ABAR[t]) * z if v else out

    def move(e: Tensor, t: int, after: float) -> Tensor:
        x0 = (z - math.sqrt(1 - ABAR[t]) * e) / math.sqrt(ABAR[t])
        return math.sqrt(after) * x0 + math.sqrt(1 - after) * e

    for i, t in enumerate(levels):
        following = levels[min(i + 1, len(levels) - 1)]
        if i + 1 < len(levels):
            after = ABAR[following]
        elif last is not None:
            after = last
        else:
            break
        e = epsilon(z, t)
        if not old:
            mixed = (e + epsilon(move(e, t, after), following)) / 2
        elif len(old) == 1:
            mixed = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            mixed = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mixed = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        z = move(mixed, t, after)
        old = [*old, e][-3:]
    return z


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 20])
def test_compvis_ddim_and_plms(steps: int) -> None:
    network = Network()
    timesteps = ldm_timesteps(steps)
    reference = ldm_ddim(network, first_noise(), timesteps, ABAR[0])
    result, seen = ours("compvis", "ddim", steps)
    assert close(reference, result)
    assert seen == network.seen
    if steps > 1:
        assert close(ldm_plms(network, first_noise(), timesteps, ABAR[0]), ours("compvis", "plms", steps)[0])
    else:
        with pytest.raises(RequestError, match="at least 2"):
            ours("compvis", "plms", steps)


def test_compvis_runs_more_steps_than_asked_for() -> None:
    run = resolve("compvis", "ddim", NoiseSchedule.scaled_linear(), 13)
    assert len(run.sigmas) - 1 == 14
    assert any("runs 14 steps when asked for 13" in notice for notice in run.notices)
    with pytest.raises(RequestError, match="3 steps"):
        resolve("compvis", "ddim", NoiseSchedule.scaled_linear(), 3)  # its list reaches timestep 1000


@pytest.mark.parametrize("steps", [2, 3, 5, 13, 20])
@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
def test_a1111_ddim_and_plms(steps: int, prediction: Prediction) -> None:
    timesteps = [min(t, 999) for t in ldm_timesteps(steps)]
    v = prediction is Prediction.V
    reference = ldm_plms(network := Network(), first_noise(), timesteps, None, v=v)
    result, seen = ours("a1111", "plms", steps, prediction=prediction)
    assert close(reference, result)
    assert seen == network.seen
    if not v:
        assert close(ldm_ddim(network, first_noise(), timesteps, None), ours("a1111", "ddim", steps)[0])


def test_a1111_ddim_runs_fewer_steps_than_asked_for() -> None:
    run = resolve("a1111", "ddim", NoiseSchedule.scaled_linear(), 20)
    assert len(run.sigmas) - 1 == 19
    assert any("runs 19 steps when asked for 20" in notice for notice in run.notices)


def paper_dpmpp_2m(network: Network, z: Tensor, steps: int) -> Tensor:
    """DPM-Solver++ (Lu et al. 2022b, algorithm 2) in alpha, sigma and lambda, as Stable Diffusion 2 calls it."""
    t = np.linspace(999, 0, steps + 1)
    log_alpha = np.interp(t, np.arange(1000), np.log(ABAR) / 2)
    alpha, sigma = np.exp(log_alpha), np.sqrt(1 - np.exp(2 * log_alpha))
    lam = log_alpha - np.log(sigma)
    old = None
    for i in range(steps):
        e = network(z, torch.tensor([t[i]], dtype=torch.float32))
        x0 = (z - sigma[i] * e) / alpha[i]
        h = lam[i + 1] - lam[i]
        d = x0
        if old is not None and not (steps < 15 and i == steps - 1):
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - old / (2 * r)
        z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * math.expm1(-h) * d
        old = x0
    return z


@pytest.mark.parametrize("steps", [2, 5, 13, 20])
def test_compvis_dpm_solver(steps: int) -> None:
    network = Network()
    reference = paper_dpmpp_2m(network, first_noise(), steps)
    result, seen = ours("compvis", "dpmpp_2m", steps)
    assert close(reference, result)
    assert seen == pytest.approx(network.seen, abs=1e-3)


# -- the tables as such -----------------------------------------------------------------------------------------------


def test_every_row_resolves_or_says_why() -> None:
    schedule = NoiseSchedule.scaled_linear()
    for name, conventions in COMPAT.items():
        for sampler, rule in conventions.samplers.items():
            assert rule.grid in rule.grids
            SAMPLERS[sampler].check(rule.options)
            for grid in rule.grids:
                run = resolve(name, sampler, schedule, 20, grid=grid)
                assert (run.sigmas[1:] < run.sigmas[:-1]).all()
                assert run.sigmas.dtype == torch.float64
                if run.times is not None:
                    t = run.times(run.sigmas[run.sigmas > 0])
                    assert ((t >= 0) & (t <= 999)).all()
                    assert (t[1:] <= t[:-1]).all()


def test_our_own_preset_has_none_of_the_flaws() -> None:
    schedule = NoiseSchedule.scaled_linear()
    for sampler in SAMPLERS:
        for steps in (1, 2, 7, 13, 20, 50):
            run = resolve("langevin", sampler, schedule, steps)
            assert len(run.sigmas) == steps + 1
            assert float(run.sigmas[0]) == schedule.sigma_max == run.prior_scale
            assert float(run.sigmas[-1]) == 0.0
            assert run.final_scale == 1.0
            assert run.times is None
            assert run.notices == ()


def test_refusals_name_the_choices() -> None:
    schedule = NoiseSchedule.scaled_linear()
    for arguments, words in [
        (("photoshop", "euler", 20), "compvis"),
        (("diffusers", "restart", 20), "euler_ancestral"),
        (("compvis", "euler", 20), "plms"),
        (("a1111", "ddim", 1), "at least 2"),
        (("diffusers", "euler", 1001), "1 ... 1000"),
        (("diffusers", "euler", 0), "at least 1"),
        (("diffusers", "lcm", 51), "50"),
    ]:
        with pytest.raises(RequestError, match=words):
            resolve(arguments[0], arguments[1], schedule, arguments[2])
    with pytest.raises(RequestError, match="linspace"):
        resolve("diffusers", "euler", schedule, 20, grid="quadratic")
    with pytest.raises(RequestError, match="v prediction"):
        resolve("compvis", "plms", schedule, 20, prediction=Prediction.V)


def test_a_run_that_starts_low_says_so() -> None:
    notices = resolve("diffusers", "euler", NoiseSchedule.scaled_linear(), 1).notices
    assert any("starts this run at sigma 0.02917" in notice for notice in notices)


def test_timetable_keeps_levels_that_passed_through_float32() -> None:
    run = resolve("diffusers", "dpmpp_2m", NoiseSchedule.scaled_linear(), 13, grid="karras")
    assert run.times is not None
    exact = run.times(run.sigmas[:-1])
    assert (run.times(run.sigmas[:-1].float()) == exact).all()
    assert (exact == exact.round()).all()


@pytest.mark.parametrize(
    ("name", "steps", "strength", "expected"),
    [
        ("langevin", 10, 0.3, (10, 3)),
        ("langevin", 10, 0.31, (10, 4)),
        ("langevin", 20, 1.0, (20, 20)),
        ("diffusers", 10, 0.3, (10, 3)),
        ("diffusers", 10, 0.29, (10, 2)),
        ("diffusers", 20, 1.0, (20, 20)),
        ("a1111", 20, 0.75, (20, 16)),
        ("a1111", 20, 1.0, (20, 20)),
        ("comfyui", 20, 0.5, (40, 20)),
        ("comfyui", 20, 1.0, (20, 20)),
        ("compvis", 50, 0.75, (50, 37)),
    ],
)
def test_steps_of_image_to_image(name: str, steps: int, strength: float, expected: tuple[int, int]) -> None:
    assert image_to_image_steps(COMPAT[name], steps, strength) == expected


def test_steps_of_image_to_image_refuses_no_step() -> None:
    with pytest.raises(RequestError, match="no step at all"):
        image_to_image_steps(COMPAT["diffusers"], 10, 0.05)
    with pytest.raises(RequestError, match="strength"):
        image_to_image_steps(COMPAT["diffusers"], 10, 0.0)


def test_choices_are_documented() -> None:
    """docs/compat.md names every preset, every time convention and every step rule."""
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "compat.md").read_text(encoding="utf-8")
    for word in [*COMPAT, *(f"`{v.name}`" for v in Times), *(f"`{v.name}`" for v in ImageToImage)]:
        assert word in text, word


def test_a_second_stream_survives_splitting_a_batch() -> None:
    noise = Noise([SEED, 5], SHAPE, step_seed_offset=1)
    draw = stream(1)
    expected = [draw(), draw()]
    for alone in (noise.select(slice(0, 1)), noise.fresh().select(slice(0, 1))):
        assert torch.equal(alone.initial().double(), first_noise())
        assert [torch.equal(alone.step().double(), e) for e in expected] == [True, True]
    assert torch.equal(noise.step()[:1].double(), expected[0])
