from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langevin.diffusion.schedule import NoiseSchedule

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "zero_snr": NoiseSchedule.scaled_linear().rescaled_zero_terminal_snr(),
    "short": NoiseSchedule.from_betas(torch.tensor([0.1, 0.2, 0.3])),
}
schedules = st.sampled_from(list(SCHEDULES.values()))


def test_stable_diffusion_figures() -> None:
    s = SCHEDULES["scaled_linear"]
    assert len(s) == 1000
    assert s.sigma_min == pytest.approx(0.0291672, abs=1e-7)
    assert s.sigma_max == pytest.approx(14.614641, abs=1e-6)
    assert float(s.abar[999]) == pytest.approx(0.00466010, abs=1e-8)
    upscaler = NoiseSchedule.scaled_linear(beta_start=0.0001, beta_end=0.02)
    assert (upscaler.sigma_min, upscaler.sigma_max) == pytest.approx((0.0100005, 36.9119), rel=1e-5)


def test_linear_betas_are_recovered() -> None:
    s = SCHEDULES["linear"]
    torch.testing.assert_close(s.betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), rtol=1e-9, atol=0)


def test_cosine_is_the_published_formula_with_its_clipping() -> None:
    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    s = SCHEDULES["cosine"]
    for t in (0, 1, 500, 998):
        assert float(s.abar[t]) == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-9)
    assert float(s.betas[999]) == pytest.approx(0.999, rel=1e-12)
    assert float(s.betas[998]) < 0.999


def test_sigmoid_ends() -> None:
    s = SCHEDULES["sigmoid"]
    middle = (s.abar[499] - 0.5).abs()
    assert middle < 1e-9  # the sigmoid from -3 to 3 is odd about its middle
    assert (s.betas <= 0.999 + 1e-12).all()


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_noise() -> None:
    before, after = SCHEDULES["scaled_linear"], SCHEDULES["zero_snr"]
    assert after.sigma_min == pytest.approx(before.sigma_min, rel=1e-9)
    assert after.sigma_max == pytest.approx(4096, rel=1e-6)
    root = before.abar.sqrt()
    published = (root - root[-1]) * root[0] / (root[0] - root[-1])
    torch.testing.assert_close(after.abar[:-1].sqrt(), published[:-1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.cosine, NoiseSchedule.sigmoid])
@pytest.mark.parametrize("steps", [2, 1000, 4000])
def test_every_schedule_can_be_brought_to_zero_snr(make: Callable[[int], NoiseSchedule], steps: int) -> None:
    """On the linear schedule the last but one abar is below 2^-24 already: the last one has to go below it."""
    before = make(steps)
    after = before.rescaled_zero_terminal_snr()
    assert after.sigma_max >= 4095.9 and after.sigma_min == pytest.approx(before.sigma_min, rel=1e-9)
    root = before.abar.sqrt()
    published = (root - root[-1]) * root[0] / (root[0] - root[-1])
    torch.testing.assert_close(after.abar[:-1].sqrt(), published[:-1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_and_levels_are_exact_at_table_entries(name: str) -> None:
    s = SCHEDULES[name]
    t = torch.arange(len(s), dtype=torch.float64)
    assert s.sigmas.dtype == torch.float64
    assert torch.equal(s.sigma(t), s.sigmas)
    assert torch.equal(s.t(s.sigmas), t)


@given(schedules, st.floats(0, 1))
def test_time_is_the_inverse_of_level(s: NoiseSchedule, where: float) -> None:
    t = where * (len(s) - 1)
    assert float(s.t(s.sigma(t))) == pytest.approx(t, abs=1e-8)


@given(schedules, st.floats(0, 1), st.floats(0, 1))
def test_levels_rise_with_time(s: NoiseSchedule, a: float, b: float) -> None:
    a, b = sorted((a * (len(s) - 1), b * (len(s) - 1)))
    assert float(s.sigma(a)) <= float(s.sigma(b)) * (1 + 1e-15)


def test_between_entries_it_is_log_linear() -> None:
    s = SCHEDULES["scaled_linear"]
    assert float(s.sigma(10.25)) == pytest.approx(float(s.sigmas[10] ** 0.75 * s.sigmas[11] ** 0.25), rel=1e-14)


def test_levels_outside_the_table_have_its_first_or_last_time() -> None:
    s = SCHEDULES["scaled_linear"]
    assert s.t(torch.tensor([0.0, 1e-9, 20.0, 1e9])).tolist() == [0.0, 0.0, 999.0, 999.0]


def test_prior() -> None:
    s = SCHEDULES["scaled_linear"]
    noise = torch.ones(1, 1, 2, 2)
    assert torch.equal(s.prior(noise), torch.full_like(noise, s.sigma_max))
    assert s.prior(noise).dtype == torch.float32
    assert torch.equal(s.prior(noise, 2.0), 2 * noise)


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.1, 1.0], [0.1, -0.2], [0.5]])
def test_impossible_betas_are_refused(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas must be"):
        NoiseSchedule.from_betas(torch.tensor(betas))
