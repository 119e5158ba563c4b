from __future__ import annotations

import pytest
import torch

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.training.objectives.diffusion import Weighting

SIGMA = NoiseSchedule.scaled_linear().rescaled_zero_terminal_snr().sigmas


def test_the_weights_are_the_published_ones_in_each_predictions_own_error() -> None:
    snr = SIGMA**-2

    def own(weighting: Weighting, prediction: Prediction) -> torch.Tensor:
        return weighting.of(SIGMA) * prediction.coefficients(SIGMA).c_out ** 2

    one = torch.ones_like(SIGMA)
    torch.testing.assert_close(own(Weighting.SNR_PLUS_ONE, Prediction.V), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(own(Weighting.SNR, Prediction.EPSILON), one, rtol=1e-12, atol=0)
    capped = snr.clamp(max=5)
    torch.testing.assert_close(own(Weighting.MIN_SNR, Prediction.EPSILON), capped / snr, rtol=1e-12, atol=0)
    torch.testing.assert_close(own(Weighting.MIN_SNR, Prediction.V), capped / (snr + 1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_the_loss_is_the_same_whatever_the_network_predicts(weighting: Weighting) -> None:
    """An error in x0 costs the same when it comes from an error in eps, x0 or v."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, wrong = torch.randn(3, len(SIGMA), 1, 2, 2, generator=generator, dtype=torch.float64)
    sigma = SIGMA.view(-1, 1, 1, 1)
    x = x0 + sigma * eps
    estimate = x0 + 0.1 * wrong
    losses = []
    for prediction in (Prediction.EPSILON, Prediction.X0, Prediction.V):
        c_skip, c_out, _ = prediction.coefficients(sigma)
        raw, target = (estimate - c_skip * x) / c_out, (x0 - c_skip * x) / c_out
        losses.append((weighting.of(sigma) * c_out**2 * (raw - target) ** 2).mean())
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-10, atol=0)
