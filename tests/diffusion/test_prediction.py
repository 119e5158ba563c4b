from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langevin.diffusion.prediction import Prediction

levels = st.floats(1e-3, 1e3).map(lambda s: torch.tensor(s, dtype=torch.float64))
values = st.floats(-3, 3).map(lambda v: torch.tensor(v, dtype=torch.float64))


@given(st.sampled_from(Prediction), levels, values, values)
def test_the_target_gives_back_x0(p: Prediction, sigma: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor) -> None:
    x = x0 + sigma * eps
    c_skip, c_out, _ = p.coefficients(sigma)
    target = (x0 - c_skip * x) / c_out
    assert float(c_skip * x + c_out * target) == pytest.approx(float(x0), abs=1e-9)


@given(levels, values, values)
def test_targets_are_the_published_ones(sigma: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor) -> None:
    x = x0 + sigma * eps
    abar = 1 / (1 + sigma**2)
    published = {
        Prediction.EPSILON: eps,
        Prediction.X0: x0,
        Prediction.V: abar.sqrt() * eps - (1 - abar).sqrt() * x0,
        Prediction.FLOW: eps - x0,
    }
    for p, expected in published.items():
        c_skip, c_out, _ = p.coefficients(sigma)
        # 1e-16 of x in the numerator, enlarged by 1 / c_out.
        tolerance = 1e-14 * (1 + abs(float(x / c_out)))
        assert float((x0 - c_skip * x) / c_out) == pytest.approx(float(expected), abs=tolerance)


@given(levels, values, values)
def test_inputs_are_in_the_coordinates_of_training(sigma: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor) -> None:
    x = x0 + sigma * eps
    abar, t = 1 / (1 + sigma**2), sigma / (1 + sigma)
    vp = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    for p in (Prediction.EPSILON, Prediction.X0, Prediction.V):
        assert float(p.coefficients(sigma).c_in * x) == pytest.approx(float(vp), abs=1e-9)
    assert float(Prediction.FLOW.coefficients(sigma).c_in * x) == pytest.approx(float((1 - t) * x0 + t * eps), abs=1e-9)


@given(levels, st.floats(0.1, 2))
def test_edm_keeps_inputs_and_targets_at_unit_variance(sigma: torch.Tensor, sigma_data: float) -> None:
    # For data of variance sigma_data^2; the three conditions of Karras et al. 2022, appendix B.6.
    c_skip, c_out, c_in = (float(c) for c in Prediction.EDM.coefficients(sigma, sigma_data))
    s, d = float(sigma), sigma_data
    assert c_in**2 * (d**2 + s**2) == pytest.approx(1)
    assert ((1 - c_skip) ** 2 * d**2 + c_skip**2 * s**2) / c_out**2 == pytest.approx(1)
    assert c_out**2 <= min(s**2, d**2) * (1 + 1e-12)  # the network's errors are amplified as little as can be


@pytest.mark.parametrize("p", Prediction)
def test_coefficients_have_the_shape_of_sigma_in_float64(p: Prediction) -> None:
    for c in p.coefficients(torch.ones(2, 3)):
        assert c.shape == (2, 3)
        assert c.dtype == torch.float64


@given(levels, values, values)
def test_min_snr_weights_are_one_formula(sigma: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor) -> None:
    # Hang et al. 2023: min(SNR, gamma) in x0 space is min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v.
    snr, gamma = 1 / sigma**2, 5.0
    weight = torch.clamp(snr, max=gamma)
    assert float(weight * Prediction.EPSILON.coefficients(sigma).c_out ** 2) == pytest.approx(float(weight / snr))
    assert float(weight * Prediction.V.coefficients(sigma).c_out ** 2) == pytest.approx(float(weight / (snr + 1)))
