"""Inversion: each method's way up against its way down, in float64 on denoisers that are known."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tests.diffusion.known_denoisers import SHAPE, gaussian, gaussian_flow, noise64, wavy
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.grids import karras_levels, make_grid, truncated
from langevin.diffusion.guidance import guided
from langevin.diffusion.inversion import INVERSIONS, closed, edict_decode, fixed_point_encode
from langevin.diffusion.samplers import SAMPLERS, final
from langevin.diffusion.schedule import NoiseSchedule

SD = NoiseSchedule.scaled_linear()
TIGHT: dict[str, Any] = {"fixed_point": {"tolerance": 1e-14, "iterations": 100}}


def picture() -> Tensor:
    return torch.tanh(noise64(3, 4).initial())


def rising(x: Tensor, sigma: float) -> Estimate:
    """Smooth, coupled over the pixels, and nowhere falling, as a posterior mean is."""
    shrunk = x / (1 + sigma**2) ** 0.5
    return Estimate(torch.tanh(shrunk) + 0.05 * torch.sin(3 * shrunk + sigma) + 0.1 * shrunk.mean((1, 2, 3), True))


def other(x: Tensor, sigma: float) -> Estimate:
    return Estimate(torch.tanh(0.8 * x / (1 + sigma**2) ** 0.5 - 0.2))


def there(name: str, denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    info = INVERSIONS[name]
    return final(info.encode(denoiser, info.start(x), sigmas, **TIGHT.get(name, {})))  # type: ignore[call-arg]


def test_the_grid_never_ends_at_zero() -> None:
    grid = make_grid("trailing", SD, 10)
    levels = closed(grid, SD.sigma_min)
    assert torch.equal(levels[:-1], grid[:-1]) and float(levels[-1]) == SD.sigma_min
    karras = make_grid("karras", SD, 10)
    assert torch.equal(closed(karras, SD.sigma_min), karras[:-1])
    assert torch.equal(closed(karras[:-2], SD.sigma_min), karras[:-2])  # ends above 0 already
    single = make_grid("trailing", SD, 1)
    assert closed(single, SD.sigma_min).tolist() == [SD.sigma_max, SD.sigma_min]


@pytest.mark.parametrize("denoiser", [rising, guided(rising, other, 3.0)], ids=["plain", "guided"])
@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("name", [name for name, info in INVERSIONS.items() if info.exact])
def test_there_and_back_is_exact_in_float64(name: str, steps: int, denoiser: Denoiser) -> None:
    info, x = INVERSIONS[name], picture()
    sigmas = closed(make_grid("trailing", SD, steps), SD.sigma_min)
    back = final(info.decode(denoiser, there(name, denoiser, x, sigmas), sigmas))
    assert float((info.picture(back) - x).abs().max()) <= 1e-8


@pytest.mark.parametrize("denoiser", [wavy, guided(wavy, other, 7.5)], ids=["wavy", "guided"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["edict", "bdia"])
def test_two_states_are_exact_whatever_the_denoiser(name: str, steps: int, denoiser: Denoiser) -> None:
    info, x = INVERSIONS[name], picture()
    sigmas = closed(make_grid("trailing", SD, steps), SD.sigma_min)
    back = final(info.decode(denoiser, there(name, denoiser, x, sigmas), sigmas))
    assert float((info.picture(back) - x).abs().max()) <= 1e-8


@pytest.mark.parametrize("name", INVERSIONS)
def test_back_and_there_is_exact_too(name: str) -> None:
    """Every state that decoding passes through is met again, in the other order."""
    info = INVERSIONS[name]
    sigmas = karras_levels(5.0, 0.1, 9)
    start = 5 * noise64().initial()
    if info.pair:
        start = torch.cat([start, final(SAMPLERS["euler"].run(wavy, start, sigmas[:2], noise64()))], 1)
    down = list(info.decode(wavy, start, sigmas))
    up = list(info.encode(wavy, down[-1].x, sigmas, **TIGHT.get(name, {})))  # type: ignore[call-arg]
    assert [step.sigma for step in up] == sigmas.flip(0)[1:].tolist()
    assert [step.index for step in up] == [step.index for step in down] == list(range(8))
    if name not in ("ddim", "bdia"):  # these begin with a step that is not the inverse of one
        for a, b in zip([start, *(step.x for step in down[:-1])], reversed([step.x for step in up]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_ddim_inversion_converges_with_first_order() -> None:
    """Gaussian data, where the flow is known; and the way back misses by as much."""
    x = picture()
    exact = gaussian_flow(x, 0.1, 5.0)
    errors, misses = [], []
    for n in (200, 400):
        sigmas = karras_levels(5.0, 0.1, n + 1, 3.0)
        top = there("ddim", gaussian(), x, sigmas)
        errors.append(float((top - exact).abs().max()))
        misses.append(float((final(INVERSIONS["ddim"].decode(gaussian(), top, sigmas)) - x).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    assert math.log2(misses[0] / misses[1]) == pytest.approx(1, abs=0.1)
    assert errors[1] < 0.05 and misses[1] < 0.05


@pytest.mark.parametrize("name", INVERSIONS)
def test_every_method_approaches_the_flow(name: str) -> None:
    x = picture()
    errors = []
    for n in (25, 100):
        sigmas = karras_levels(5.0, 0.1, n + 1, 3.0)
        top = INVERSIONS[name].picture(there(name, gaussian(), x, sigmas))
        errors.append(float((top - gaussian_flow(x, 0.1, 5.0)).abs().max()))
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.3


@pytest.mark.parametrize("name", INVERSIONS)
def test_one_image_alone_is_that_image_in_the_batch_but_for_when_iterating_ends(name: str) -> None:
    x = picture()
    sigmas = closed(make_grid("trailing", SD, 5), SD.sigma_min)
    both, alone = there(name, gaussian(), x, sigmas), there(name, gaussian(), x[1:], sigmas)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-10)


def test_the_iteration_stops_when_it_is_there_and_keeps_the_best_where_it_never_is() -> None:
    calls: list[float] = []

    def counted(x: Tensor, sigma: float) -> Estimate:
        calls.append(sigma)
        return wavy(x, sigma)

    sigmas = torch.tensor([2.0, 1.5], dtype=torch.float64)
    x = picture()
    top = final(fixed_point_encode(counted, x, sigmas))
    assert len(calls) < 12
    assert float((final(INVERSIONS["ddim"].decode(wavy, top, sigmas)) - x).abs().max()) <= 1e-5 * float(top.abs().max())

    def torn(x: Tensor, sigma: float) -> Estimate:  # no state leads to x
        return Estimate(x + torch.where(x > 0, -8.0, 8.0))

    calls.clear()
    assert final(fixed_point_encode(torn, x, sigmas, iterations=4)).isfinite().all()


def test_edict_is_the_papers_algorithm_in_variance_preserving_coordinates() -> None:
    """Its steps as printed: a_t z + b_t eps, with z scaled to unit variance and the network told t."""
    sigmas = torch.tensor([5.0, 2.0, 0.7], dtype=torch.float64)
    p = 0.9

    def eps(z: Tensor, s: float) -> Tensor:
        x = z * math.sqrt(1 + s * s)
        return (x - wavy(x, s).x0) / s

    u, v = (5 * noise64(seed, seed + 1).initial() / math.sqrt(26) for seed in (1, 3))
    x = math.sqrt(26) * torch.cat([u, v], 1)
    found = final(edict_decode(wavy, x, sigmas, p=p))
    for i, (s, s1) in enumerate([(5.0, 2.0), (2.0, 0.7)]):
        alpha, alpha1 = (1 / math.sqrt(1 + r * r) for r in (s, s1))
        a = alpha1 / alpha
        b = s1 * alpha1 - a * s * alpha
        first, second = (v, u) if i % 2 else (u, v)
        first = a * first + b * eps(second, s)
        second = a * second + b * eps(first, s)
        first = p * first + (1 - p) * second
        second = p * second + (1 - p) * first
        u, v = (second, first) if i % 2 else (first, second)
    torch.testing.assert_close(found, math.sqrt(1 + 0.7**2) * torch.cat([u, v], 1), rtol=1e-12, atol=1e-12)


def test_bdia_with_gamma_is_exact_and_the_call_counts_are_these() -> None:
    info, x = INVERSIONS["bdia"], picture()
    sigmas = closed(make_grid("karras", SD, 12), SD.sigma_min)
    top = final(partial(info.encode, gamma=0.7)(wavy, info.start(x), sigmas))
    back = final(partial(info.decode, gamma=0.7)(wavy, top, sigmas))
    assert float((info.picture(back) - x).abs().max()) <= 1e-8
    assert {name: one.decode_calls(6) for name, one in INVERSIONS.items()} == {
        "ddim": 6, "fixed_point": 6, "edict": 12, "bdia": 5,
    }  # fmt: skip
    assert info.decode_calls(1) == 0


def test_a_part_of_the_grid_is_inverted_alike() -> None:
    sigmas = closed(truncated(make_grid("trailing", SD, 10), 0.55), SD.sigma_min)
    x = picture()
    top = there("fixed_point", rising, x, sigmas)
    assert top.shape == (2, *SHAPE)
    assert float((final(INVERSIONS["fixed_point"].decode(rising, top, sigmas)) - x).abs().max()) <= 1e-8
