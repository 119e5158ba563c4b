from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.diffusion.known_denoisers import SHAPE, gaussian, gaussian_flow, noise64, wavy
from torch import Tensor

from langevin.diffusion.core import Estimate
from langevin.diffusion.grids import karras_levels, make_grid
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS, final, get_sampler
from langevin.diffusion.samplers.multistep import _adams_bashforth
from langevin.diffusion.samplers.single_step import restart_walk
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError

SD = NoiseSchedule.scaled_linear()

QUIET: Mapping[str, dict[str, Any]] = {
    "ddim": {},
    "euler": {},
    "euler_ancestral": {"eta": 0.0},
    "heun": {},
    "dpm2": {},
    "dpm2_ancestral": {"eta": 0.0},
    "lms": {},
    "plms": {},
    "dpmpp_2s_ancestral": {"eta": 0.0},
    "dpmpp_sde": {"eta": 0.0},
    "dpmpp_2m": {},
    "dpmpp_2m_sde": {"eta": 0.0},
    "dpmpp_3m_sde": {"eta": 0.0},
    "unipc": {},
    "restart": {"segments": ()},
}
"""Every sampler that can run without noise, with the options that take it off."""

SDE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")


def test_the_samplers_are_these() -> None:
    assert set(SAMPLERS) == {*QUIET, "ddpm", "lcm"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_registered_options_are_those_of_the_function(name: str) -> None:
    info = SAMPLERS[name]
    parameters = inspect.signature(info.function).parameters
    assert list(parameters)[:4] == ["denoiser", "x", "sigmas", "noise"]
    keyword = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert {key: option.default for key, option in info.options.items()} == keyword
    info.check({key: option.default for key, option in info.options.items()})
    assert info.name == name == info.function.__name__
    assert info.title and info.paper and all(option.meaning for option in info.options.values())
    assert (info.function.__doc__ and "et al." in info.function.__doc__) or "k-diffusion" in info.function.__doc__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_reported(name: str, steps: int, dtype: torch.dtype) -> None:
    sigmas = make_grid("trailing", SD, steps)
    noise = Noise([1, 2], SHAPE, dtype=dtype)
    x = SD.prior(noise.initial())
    done = list(SAMPLERS[name].run(wavy, x, sigmas, noise))
    assert [step.index for step in done] == list(range(len(done)))
    if name != "restart":
        assert [step.sigma for step in done] == sigmas[1:].tolist()
    for step in done:
        assert step.x.dtype == step.x0.dtype == dtype
        assert step.x.shape == step.x0.shape == (2, *SHAPE)
        assert torch.isfinite(step.x).all()
    assert done[-1].sigma == 0
    assert x.equal(SD.prior(noise.initial()))  # the caller's x is not written to


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"lms", "plms"}))
def test_the_step_to_zero_is_the_estimate_itself(name: str) -> None:
    noise = noise64()
    *_, last = SAMPLERS[name].run(wavy, SD.prior(noise.initial()), make_grid("trailing", SD, 4), noise)
    assert torch.equal(last.x, last.x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_stochastic_is_what_draws_noise(name: str) -> None:
    sigmas = make_grid("karras", SD, 6)
    x = SD.prior(noise64(1).initial())
    first, second = (final(SAMPLERS[name].run(wavy, x, sigmas, noise64(seed))) for seed in (1, 2))
    assert torch.equal(first, second) is not SAMPLERS[name].stochastic


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_image_alone_is_that_image_in_the_batch(name: str) -> None:
    sigmas = make_grid("trailing", SD, 5)
    noise = Noise([4, 8, 15], SHAPE)
    batch = final(SAMPLERS[name].run(wavy, SD.prior(noise.initial()), sigmas, noise))
    for i in range(3):
        alone = noise.select(slice(i, i + 1))
        assert torch.equal(final(SAMPLERS[name].run(wavy, SD.prior(alone.initial()), sigmas, alone)), batch[i : i + 1])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("end", [0.0, 0.2])
def test_a_single_picture_is_found_exactly(name: str, end: float) -> None:
    """Data that is one point c: D = c, and x must be c plus noise of the level reached."""
    c = torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, *SHAPE)
    noise = noise64()
    start = noise.initial()
    sigmas = torch.tensor([10.0, 4.0, 1.5, 0.6, end], dtype=torch.float64)
    run = SAMPLERS[name].run(
        lambda x, sigma: Estimate(c.expand_as(x), torch.zeros_like(x)), c + 10 * start, sigmas, noise
    )
    residue = final(run) - c
    if not SAMPLERS[name].stochastic:
        torch.testing.assert_close(residue, end * start, rtol=1e-12, atol=1e-12)
    elif end == 0:
        assert float(residue.abs().max()) < 1e-12


@pytest.mark.parametrize(
    "name", sorted(set(SAMPLERS) - set(QUIET) - {"lcm"} | {"euler_ancestral", "dpm2_ancestral", "restart", *SDE})
)
def test_noise_has_the_variance_of_the_level(name: str) -> None:
    """One point of data, 2,000 pixels: the deviation at the end is the level's, within 5 standard errors."""
    noise = Noise([1], (20, 10, 10), dtype=torch.float64)
    sigmas = torch.tensor([10.0, 4.0, 1.5, 0.6, 0.2], dtype=torch.float64)
    x = 10 * noise.initial()
    got = final(SAMPLERS[name].run(lambda x, s: Estimate(torch.zeros_like(x), torch.zeros_like(x)), x, sigmas, noise))
    assert float(got.std()) == pytest.approx(0.2, rel=5 / math.sqrt(4000))


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUIET)
def test_declared_order_on_gaussian_data(name: str) -> None:
    """A light check; `langevin selftest` measures the order on mixtures."""
    noise = noise64()
    x = 5 * noise.initial()
    expected = gaussian_flow(x, 5.0, 0.1)
    errors = [
        float(
            (
                final(SAMPLERS[name].run(gaussian(), x, karras_levels(5.0, 0.1, n + 1, 3.0), noise, **QUIET[name]))
                - expected
            )
            .abs()
            .max()
        )
        for n in (400, 800)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(SAMPLERS[name].order, abs=0.15)
    assert errors[1] < (5e-3, 5e-5)[SAMPLERS[name].order - 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_lms_integrates_polynomials_exactly(count: int) -> None:
    nodes = [14.6, 9.0, 5.5, 3.1][-count:]
    weights = _adams_bashforth(nodes, 3.1, 0.4)
    for power in range(count):
        exact = (0.4 ** (power + 1) - 3.1 ** (power + 1)) / (power + 1)
        assert sum(w * node**power for w, node in zip(weights, nodes, strict=True)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_of_order_3_without_falling_order_converges_faster(variant: str) -> None:
    noise = noise64()
    x = 5 * noise.initial()
    expected = gaussian_flow(x, 5.0, 0.1)
    for order, least in ((2, 2.8), (3, 3.3)):
        options = {"order": order, "variant": variant, "lower_order_final": False}
        errors = [
            float(
                (
                    final(SAMPLERS["unipc"].run(gaussian(), x, karras_levels(5.0, 0.1, n + 1, 3.0), noise, **options))
                    - expected
                )
                .abs()
                .max()
            )
            for n in (32, 64)
        ]
        assert math.log2(errors[0] / errors[1]) > least


def test_first_order_final_changes_the_last_step_alone() -> None:
    noise = noise64()
    sigmas = torch.tensor([5.0, 2.0, 1.0, 0.4], dtype=torch.float64)
    runs = [
        list(SAMPLERS["dpmpp_2m"].run(wavy, 5 * noise.initial(), sigmas, noise, first_order_final=f))
        for f in (False, True)
    ]
    for a, b in zip(runs[0][:-1], runs[1][:-1], strict=True):
        assert torch.equal(a.x, b.x)
    before, last = runs[1][-2:]
    torch.testing.assert_close(last.x, last.x0 + 0.4 * (before.x - last.x0), rtol=1e-12, atol=1e-12)
    assert not torch.equal(runs[0][-1].x, last.x)


def test_solver_heun_integrates_a_linear_x0_exactly() -> None:
    """x0 that is linear in log sigma, whatever x: from the second step on only the integration is left."""

    def linear(x: Tensor, sigma: float) -> Estimate:
        return Estimate(torch.full_like(x, -math.log(sigma)))

    levels = [3.0, 1.0, 0.2]
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    sigmas = torch.tensor(levels, dtype=torch.float64)
    first, second = SAMPLERS["dpmpp_2m_sde"].run(linear, x, sigmas, noise64(1), eta=0.0, solver="heun")
    # d(x / sigma) = x0 e^lambda dlambda, lambda = -log sigma, has the antiderivative (lambda - 1) e^lambda.
    exact = 0.2 * (first.x / 1.0 + (-math.log(0.2) - 1) / 0.2 - (-math.log(1.0) - 1) / 1.0)
    torch.testing.assert_close(second.x, exact, rtol=1e-12, atol=1e-12)


# -- stochastic solvers and their path ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDE)
def test_the_realisation_does_not_depend_on_the_number_of_steps(name: str) -> None:
    """For data that is one point the reverse SDE is solved without error: 3 steps and 40 end in the same x."""
    noise = noise64()
    x = 10 * noise.initial()

    def ends(count: int, noise: Noise) -> Tensor:
        sigmas = karras_levels(10.0, 0.5, count + 1)
        return final(SAMPLERS[name].run(lambda x, s: Estimate(torch.zeros_like(x)), x, sigmas, noise))

    few, many = ends(3, noise), ends(40, noise.fresh())
    assert float(few.std()) > 0.3
    assert float((few - many).abs().max()) < 1e-3  # levels are rounded to 2^-16 of themselves in the path
    stream = [ends(n, Noise([1, 2], SHAPE, dtype=torch.float64, interval="stream")) for n in (3, 40)]
    assert float((stream[0] - stream[1]).abs().max()) > 0.1


@pytest.mark.parametrize("name", SDE)
def test_more_steps_converge_to_one_picture(name: str) -> None:
    noise = noise64()
    x = 10 * noise.initial()
    ends = [final(SAMPLERS[name].run(wavy, x, karras_levels(10.0, 0.1, n + 1), noise.fresh())) for n in (10, 40, 160)]
    coarse, fine = (float((a - b).abs().mean()) for a, b in pairwise(ends))
    assert fine < 0.5 * coarse


# -- restart ----------------------------------------------------------------------------------------------------------


def test_restart_walks_back_and_down_again() -> None:
    sigmas = torch.tensor([10.0, 2.1, 0.9, 0.12, 0.03, 0.0], dtype=torch.float64)
    walk = restart_walk(sigmas, [(0.1, 2.0, 3, 2)])
    again = list(pairwise(karras_levels(2.1, 0.12, 4).tolist()))
    assert walk == [(10.0, 2.1), (2.1, 0.9), (0.9, 0.12), *again, *again, (0.12, 0.03), (0.03, 0.0)]
    assert restart_walk(sigmas, []) == list(pairwise(sigmas.tolist()))
    assert restart_walk(sigmas, [(20.0, 30.0, 3, 1)]) == list(pairwise(sigmas.tolist()))


def test_restart_draws_noise_once_per_return() -> None:
    noise, count = noise64(), 0

    class Counting(Noise):
        def step(self) -> Tensor:
            nonlocal count
            count += 1
            return super().step()

    counting = Counting([1, 2], SHAPE, dtype=torch.float64)
    sigmas = make_grid("karras", SD, 10)
    done = list(SAMPLERS["restart"].run(wavy, SD.prior(noise.initial()), sigmas, counting, segments=[(0.1, 2.0, 4, 3)]))
    assert count == 3
    assert len(done) == 10 + 4 * 3


# -- counts and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "one", "ten"),
    [
        ("euler", {}, 1, 10),
        ("ddpm", {"variance": "learned"}, 1, 10),
        ("dpmpp_2m", {}, 1, 10),
        ("dpmpp_3m_sde", {}, 1, 10),
        ("unipc", {"order": 3}, 1, 10),
        ("lms", {}, 1, 10),
        ("lcm", {}, 1, 10),
        ("plms", {}, 1, 11),
        ("heun", {}, 1, 19),
        ("dpm2", {}, 1, 19),
        ("dpm2_ancestral", {}, 1, 19),
        ("dpmpp_2s_ancestral", {}, 1, 19),
        ("dpmpp_sde", {}, 1, 19),
        ("restart", {}, 1, 19 + 18),
        ("restart", {"segments": ((0.1, 2.0, 5, 2), (1.0, 8.0, 3, 1))}, 1, 19 + 20 + 6),
    ],
)
def test_calls(name: str, options: dict[str, Any], one: int, ten: int) -> None:
    assert SAMPLERS[name].calls(1, **options) == one
    assert SAMPLERS[name].calls(10, **options) == ten


def test_calls_on_a_grid_that_ends_above_zero() -> None:
    assert SAMPLERS["heun"].calls_on(torch.tensor([3.0, 2.0, 1.0])) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"eat": 1}, "option 'eat' of sampler ddim is unknown; its options: eta"),
        ("euler", {"eta": 1}, "its options: none"),
        ("ddim", {"eta": 1.5}, "eta 1.5 of ddim is out of range; it must be from 0 to 1"),
        ("euler_ancestral", {"eta": -0.1}, "eta -0.1 of euler_ancestral is out of range"),
        ("euler_ancestral", {"s_noise": float("nan")}, "s_noise nan of euler_ancestral is out of range"),
        ("ddpm", {"variance": "small"}, "variance 'small' of ddpm is unknown; choose one of fixed_small"),
        ("unipc", {"order": 4}, "order 4 of unipc is out of range"),
        ("unipc", {"order": 1.5}, "order 1.5 of unipc must be a whole number"),
        ("unipc", {"variant": "bh3"}, "choose one of bh1, bh2"),
        ("unipc", {"lower_order_final": 1}, "must be true or false"),
        ("lms", {"order": "4"}, "order '4' of lms must be a number"),
        ("restart", {"segments": ((2.0, 0.1, 9, 1),)}, "segments"),
        ("restart", {"segments": ((0.1, 2.0, 9),)}, "segments"),
    ],
)
def test_wrong_options_are_refused_before_the_first_step(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SAMPLERS[name].run(wavy, torch.zeros(1, *SHAPE), torch.tensor([1.0, 0.0]), noise64(1), **options)


def test_an_unknown_sampler_is_named_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="sampler 'euler_a' is unknown; choose one of ddpm, ddim, euler"):
        get_sampler("euler_a")
    assert get_sampler("euler") is SAMPLERS["euler"]


@pytest.mark.parametrize(
    "levels",
    [[1.0], [0.0, 0.0], [float("inf"), 1.0], [1.0, 0.0, 0.5], [1.0, 1.0, 0.0], [1.0, -0.5], [1.0, float("nan")]],
)
def test_steps_from_impossible_levels_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"step cannot start|step cannot go|no interval"):
        list(SAMPLERS["euler"].run(wavy, torch.zeros(1, *SHAPE), torch.tensor(levels), noise64(1)))


def test_learned_variance_needs_a_network_that_has_it() -> None:
    with pytest.raises(RequestError, match="variance 'learned' needs a network that predicts it"):
        list(
            SAMPLERS["ddpm"].run(
                lambda x, s: Estimate(x),
                torch.zeros(1, *SHAPE),
                torch.tensor([2.0, 1.0]),
                noise64(1),
                variance="learned",
            )
        )
