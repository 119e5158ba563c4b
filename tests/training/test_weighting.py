"""The weights are the published ones, and the loss is one and the same whatever the network predicts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.diffusion_model import DiffusionModel
from langevin.training.objectives.denoising import Denoising, DenoisingConfig, Noised
from langevin.training.objectives.levels import Drawn
from langevin.training.objectives.weighting import Weighting

SIGMA = NoiseSchedule.scaled_linear().rescaled_zero_terminal_snr().sigmas
SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "geometric": NoiseSchedule.geometric(),
    "zero terminal, scaled linear": NoiseSchedule.scaled_linear().rescaled_zero_terminal_snr(),
    "zero terminal, linear": NoiseSchedule.linear().rescaled_zero_terminal_snr(),
    "zero terminal, cosine": NoiseSchedule.cosine().rescaled_zero_terminal_snr(),
}


def own(weighting: Weighting, prediction: Prediction, **parameters: Any) -> torch.Tensor:
    """The weight in a prediction's own error."""
    return weighting.of(SIGMA, **parameters) * prediction.coefficients(SIGMA).c_out ** 2


def test_the_weights_are_the_published_ones_in_each_predictions_own_error() -> None:
    snr = SIGMA**-2
    one = torch.ones_like(SIGMA)
    eps, v, edm, x0 = Prediction.EPSILON, Prediction.V, Prediction.EDM, Prediction.X0
    for found, published in [
        (own(Weighting.SNR_PLUS_ONE, v), one),
        (own(Weighting.SNR, eps), one),
        (own(Weighting.MIN_SNR, eps), snr.clamp(max=5) / snr),
        (own(Weighting.MIN_SNR, v), snr.clamp(max=5) / (snr + 1)),
        (own(Weighting.MIN_SNR, x0, gamma=2.5), snr.clamp(max=2.5)),
        (own(Weighting.SOFT_MIN_SNR, x0), 1 / (SIGMA**2 + 0.25)),
        # k-diffusion's form, of EDM's own error: (sigma sigma_data / (sigma^2 + sigma_data^2))^2.
        (own(Weighting.SOFT_MIN_SNR, edm), (SIGMA * 0.5 / (SIGMA**2 + 0.25)) ** 2),
        (own(Weighting.P2, eps), 1 / (1 + snr)),
        (own(Weighting.P2, eps, gamma=0.5, k=3.0), (3 + snr) ** -0.5),
        (own(Weighting.EDM, edm), one),
        (own(Weighting.EDM, x0), (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2),
        (own(Weighting.TRUNCATED_SNR, x0), torch.maximum(snr, one)),
        (own(Weighting.DEBIASED, eps), 1 / snr.sqrt()),
    ]:
        torch.testing.assert_close(found, published, rtol=1e-10, atol=0)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_the_weights_are_finite_where_nothing_is_left_of_the_picture(weighting: Weighting) -> None:
    """At SNR = 0 each has its limit; it is epsilon's coefficient that has none."""
    there = torch.tensor([math.inf], dtype=torch.float64)
    limits = {Weighting.SNR_PLUS_ONE: 1.0, Weighting.TRUNCATED_SNR: 1.0, Weighting.EDM: 4.0}
    assert float(weighting.of(there)) == limits.get(weighting, 0.0)
    near = weighting.of(torch.tensor([1e9], dtype=torch.float64))
    torch.testing.assert_close(near, weighting.of(there), rtol=0, atol=1e-8)
    assert not torch.isfinite(Prediction.EPSILON.coefficients(there).c_out)


class Echo(nn.Module):
    """Stands for a network: the loss is asked of given outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))


@st.composite
def losses_of_one_estimate(draw: st.DrawFn) -> tuple[Weighting, dict[str, torch.Tensor]]:
    """The loss of one estimate of x0, as each kind of network would give it."""
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    weighting = draw(st.sampled_from(list(Weighting)))
    value = st.floats(0.3, 8)
    parameters = {name: draw(st.none() | value) for name in weighting.parameters}
    sigma_data = draw(value)
    levels = st.integers(0, len(schedule) - 1)
    t = torch.tensor([0, len(schedule) - 1, *draw(st.lists(levels, min_size=1, max_size=6))])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x0, eps, wrong = torch.randn(3, len(t), 1, 2, 2, generator=generator, dtype=torch.float64)
    sigma = schedule.sigmas[t]
    x = x0 + sigma.view(-1, 1, 1, 1) * eps
    estimate = x0 + 0.1 * wrong
    share = torch.rand(len(t), generator=generator, dtype=torch.float64)
    noised = Noised(x0, x, x, Drawn(sigma, t, share))
    config = DenoisingConfig(weighting=weighting, **parameters)  # type: ignore[arg-type]
    found = {}
    for prediction in Prediction:
        model = DiffusionModel(Echo(), schedule, prediction, sigma_data)
        c_skip, c_out, _ = prediction.coefficients(sigma.view(-1, 1, 1, 1), sigma_data)
        found[prediction.value] = Denoising(model, config).loss(noised, (estimate - c_skip * x) / c_out)[0]
    weight = weighting.of(sigma, **parameters, sigma_data=sigma_data)
    found["stated for x0"] = (share * weight * (estimate - x0).square().mean((1, 2, 3))).mean()
    return weighting, found


@given(losses_of_one_estimate())
@settings(max_examples=100, deadline=None)
def test_the_loss_is_the_same_whatever_the_network_predicts(
    found: tuple[Weighting, dict[str, torch.Tensor]],
) -> None:
    """An error in x0 costs the same when it comes from an error in eps, x0, v, the flow or EDM's output: also at the
    last level of a schedule with zero terminal SNR."""
    weighting, losses = found
    for name, loss in losses.items():
        # Of epsilon at sigma 4096 and more, twelve digits of x are lost in x - sigma eps.
        torch.testing.assert_close(loss, losses["stated for x0"], rtol=1e-8, atol=0, msg=f"{weighting} {name}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weighting": "snr", "gamma": 5.0}, "gamma 5.0 has no meaning with weighting snr"),
        ({"weighting": "min_snr", "k": 1.0}, "k 1.0 has no meaning with weighting min_snr"),
        ({"levels": {"name": "uniform", "mean": 0.0}}, "mean 0.0 has no meaning with uniform"),
        ({"levels": {"name": "log_normal", "history": 3}}, "history 3 has no meaning with log_normal"),
        ({"levels": {"name": "importance", "deviation": 3.0}}, "deviation 3.0 has no meaning with importance"),
    ],
)
def test_a_parameter_that_would_do_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingConfig(**fields)
