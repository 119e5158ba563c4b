from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from langevin.diffusion.grids import GRIDS, custom_grid, level_at, make_grid, truncated
from langevin.diffusion.incomplete_beta import incomplete_beta, inverse_incomplete_beta
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError

SD = NoiseSchedule.scaled_linear()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 5, 13, 20, 30])
def test_every_grid_falls_to_zero_in_the_steps_asked_for(name: str, steps: int) -> None:
    grid = make_grid(name, SD, steps)
    assert grid.dtype == torch.float64
    assert grid.shape == (steps + 1,)
    assert float(grid[-1]) == 0
    assert (grid[1:] < grid[:-1]).all()
    if name != "leading":
        assert float(grid[0]) == pytest.approx(SD.sigma_max, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "steps", "options", "times"),
    [
        ("trailing", 4, {}, [999, 749, 499, 249]),
        ("trailing", 13, {}, [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76]),
        ("leading", 20, {}, list(range(951, 0, -50))),
        ("leading", 20, {"offset": 0}, list(range(950, -1, -50))),
        ("leading", 13, {}, [1 + 76 * i for i in range(12, -1, -1)]),
        ("linspace", 4, {}, [999, 666, 333, 0]),
        ("quadratic", 4, {}, [999, 444, 111, 0]),
        ("quadratic", 3, {"reach": 800 / 999}, [800, 200, 0]),
    ],
)
def test_time_grids_visit_the_published_timesteps(name: str, steps: int, options: dict, times: list[int]) -> None:
    t = SD.t(make_grid(name, SD, steps, **options)[:-1])
    torch.testing.assert_close(t, torch.tensor(times, dtype=torch.float64), rtol=0, atol=1e-7)


def test_whole_timesteps_are_an_option() -> None:
    assert torch.equal(
        SD.t(make_grid("linspace", SD, 5, whole=True)[:-1]), torch.tensor([999, 749, 500, 250, 0]).double()
    )
    assert float(SD.t(make_grid("trailing", SD, 3, whole=False)[1])) == pytest.approx(1000 * 2 / 3 - 1)


def test_karras_is_equation_5() -> None:
    grid = make_grid("karras", SD, 10, sigma_min=0.002, sigma_max=80.0)
    for i in range(10):
        expected = (80 ** (1 / 7) + i / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert float(grid[i]) == pytest.approx(expected, rel=1e-12)
    assert (float(grid[0]), float(grid[9])) == (80.0, 0.002)


def test_exponential_has_equal_ratios_and_polyexponential_is_it_at_rho_1() -> None:
    grid = make_grid("exponential", SD, 9)
    ratios = grid[1:-1] / grid[:-2]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-12, atol=0)
    assert torch.equal(grid, make_grid("polyexponential", SD, 9))
    bent = make_grid("polyexponential", SD, 9, rho=2.0)
    assert float(bent[4]) == pytest.approx(SD.sigma_min * (SD.sigma_max / SD.sigma_min) ** 0.25, rel=1e-12)


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_beta_is_scipys_quantile_over_sigma(steps: int) -> None:
    quantiles = scipy.stats.beta.ppf([1 - i / (steps - 1) for i in range(steps)], 0.6, 0.6)
    expected = SD.sigma_min + (SD.sigma_max - SD.sigma_min) * torch.from_numpy(quantiles)
    torch.testing.assert_close(make_grid("beta", SD, steps)[:-1], expected, rtol=1e-10, atol=0)


def test_beta_timesteps_is_scipys_quantile_over_time() -> None:
    t = [round(999 * q) for q in scipy.stats.beta.ppf([1 - i / 20 for i in range(20)], 0.6, 0.6)]
    assert SD.t(make_grid("beta_timesteps", SD, 20)[:-1]).tolist() == t


@given(st.floats(0, 1), st.floats(0.2, 20), st.floats(0.2, 20))
def test_the_incomplete_beta_function_is_scipys(p: float, a: float, b: float) -> None:
    assert incomplete_beta(p, a, b) == pytest.approx(scipy.special.betainc(a, b, p), rel=1e-10, abs=1e-14)
    x = inverse_incomplete_beta(p, a, b)
    # Near 0 and 1 the function may rise from one float to the next by more than any tolerance: p has to lie between.
    low, high = scipy.special.betainc(a, b, [np.nextafter(x, 0), np.nextafter(x, 1)])
    slack = 1e-7 * p + 1e-12
    assert low - slack <= p <= high + slack


def test_align_your_steps_is_the_published_table_at_10_steps() -> None:
    table = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    assert make_grid("align_your_steps", SD, 10).tolist() == [*table[:10], 0.0]
    assert make_grid("align_your_steps", SD, 11, keep_last=True).tolist() == [*table, 0.0]
    between = make_grid("align_your_steps", SD, 20)
    assert float(between[1]) == pytest.approx((14.615 * 6.475) ** 0.5, rel=1e-12)
    with pytest.raises(RequestError, match="use another grid"):
        make_grid("align_your_steps", NoiseSchedule.cosine(), 10)


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("carras", 5, {}, "grid 'carras' is unknown; choose one of trailing"),
        ("karras", 5, {"roh": 7}, "option 'roh' of the karras grid is unknown; its options: rho, sigma_min, sigma_max"),
        ("karras", 0, {}, "steps 0 is too small"),
        ("karras", 5, {"rho": 0}, "rho 0 is out of range"),
        ("karras", 5, {"rho": 1e-5}, "rho 1e-05 is out of range"),
        ("polyexponential", 5, {"rho": math.inf}, "rho inf is out of range"),
        ("karras", 5, {"sigma_min": 20.0}, "0 < sigma_min < sigma_max must hold"),
        ("exponential", 5, {"sigma_min": 0.0}, "0 < sigma_min < sigma_max must hold"),
        ("beta", 5, {"alpha": -1.0}, "alpha -1 is out of range"),
        ("quadratic", 5, {"reach": 1.5}, "reach 1.5 is out of range"),
        ("karras", 5, {"rho": "7"}, "rho '7' of the karras grid must be a number"),
        ("karras", 5, {"rho": None}, "rho None of the karras grid must be a number"),
        ("linspace", 5, {"whole": 1}, "whole 1 of the linspace grid must be true or false"),
        ("leading", 5, {"offset": True}, "offset True of the leading grid must be a number"),
        ("trailing", 1001, {}, "cannot tell 1001 steps apart"),
        ("leading", 1000, {}, "reaches timestep 1000"),
        ("leading", 1001, {}, "in steps of 0"),
    ],
)
def test_wrong_options_are_refused(name: str, steps: int, options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_grid(name, SD, steps, **options)


def test_custom_grids_may_end_above_zero() -> None:
    assert custom_grid([3, 1, 0]).tolist() == [3.0, 1.0, 0.0]
    assert custom_grid(torch.tensor([3.0, 0.5])).tolist() == [3.0, 0.5]
    for wrong in (
        [1.0],
        [1.0, 1.0],
        [1.0, 2.0],
        [1.0, -1.0],
        [1.0, 0.0, 0.0],
        [float("inf"), 1.0],
        [float("nan"), 1.0],
    ):
        with pytest.raises(RequestError):
            custom_grid(wrong)


@pytest.mark.parametrize("steps", [3, 7, 20])
def test_whole_steps_of_a_fraction_are_exact(steps: int) -> None:
    grid = make_grid("trailing", SD, steps)
    for i in range(steps + 1):
        assert level_at(grid, i / steps) == float(grid[i])
        if i < steps:
            assert torch.equal(truncated(grid, 1 - i / steps), grid[i:])


@given(st.sampled_from(["trailing", "karras", "beta"]), st.floats(0.001, 1), st.floats(0.001, 1))
def test_more_strength_starts_at_more_noise(name: str, a: float, b: float) -> None:
    grid = make_grid(name, SD, 12)
    a, b = sorted((a, b))
    low, high = truncated(grid, a), truncated(grid, b)
    assert float(low[0]) <= float(high[0])
    assert (low[1:] < low[:-1]).all()
    assert set(low[1:].tolist()) <= set(grid.tolist())
    assert len(low) - 1 <= 12 * a + 1  # no more steps than the strength's part, rounded up
    assert len(low) - 1 >= 12 * a - 1e-6


def test_strength_is_continuous() -> None:
    grid = make_grid("trailing", SD, 10)
    assert float(truncated(grid, 0.55)[0]) == pytest.approx(float((grid[4] * grid[5]) ** 0.5), rel=1e-12)
    assert truncated(grid, 0.05).tolist() == [float(grid[9]) / 2, 0.0]  # towards 0 linearly
    for strength in (0.0, 1.01, -0.5, 1e-12):
        with pytest.raises(RequestError, match="strength"):
            truncated(grid, strength)


def test_none_is_the_schedules_own_end() -> None:
    assert torch.equal(make_grid("karras", SD, 5, sigma_min=None), make_grid("karras", SD, 5))
