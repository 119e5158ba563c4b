"""Probing tells noise from v on networks whose truth is known, and says so where it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from langevin.checkpoints.probe import probe_prediction
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import CheckpointError
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.unet import UNet, UNetConfig

SCHEDULE = NoiseSchedule.scaled_linear()
CONFIG = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(False, False),
    middle_attention=False,
    context_channels=None,
    num_heads=1,
)


@dataclass(frozen=True)
class Channels:
    in_channels: int = 4
    context_channels: int | None = None


class Gaussian(nn.Module):
    """The best network for Gaussian data whose low frequencies have standard deviation `low` and whose fine grain
    has `grain`: exact in the Fourier domain."""

    def __init__(self, prediction: Prediction, low: float, grain: float) -> None:
        super().__init__()
        self.config = Channels()
        self.prediction = prediction
        self.low, self.grain = low, grain
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, t: Tensor, *, context: Tensor | None, labels: Tensor | None) -> Tensor:
        assert context is None and labels is None
        abar = SCHEDULE.abar[t.long()].view(-1, 1, 1, 1).float()
        height, width = z.shape[-2:]
        fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]
        variance = torch.where(fy**2 + fx**2 < 0.01, self.low**2, self.grain**2)
        gain = abar.sqrt() * variance / (abar * variance + 1 - abar)
        x0 = torch.fft.ifft2(torch.fft.fft2(z.float()) * gain).real
        eps = (z - abar.sqrt() * x0) / (1 - abar).sqrt()
        match self.prediction:
            case Prediction.EPSILON:
                return self.scale * eps
            case Prediction.V:
                return self.scale * (abar.sqrt() * eps - (1 - abar).sqrt() * x0)
            case _:
                return self.scale * x0


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
@pytest.mark.parametrize("grain", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("low", [1.0, 4.0])
def test_exact_networks_of_gaussian_data(prediction: Prediction, grain: float, low: float) -> None:
    network = Gaussian(prediction, low, grain)
    assert probe_prediction(network, SCHEDULE, None, label="x") is prediction


def test_no_answer_is_given_without_evidence() -> None:
    torch.manual_seed(0)
    untrained = UNet(CONFIG).eval()
    silent = Gaussian(Prediction.EPSILON, 1.0, 0.1)
    silent.scale.data.zero_()
    half = Gaussian(Prediction.EPSILON, 1.0, 0.1)
    half.scale.data.fill_(0.5)
    for network in (untrained, silent, half, Gaussian(Prediction.X0, 1.0, 0.1), Gaussian(Prediction.V, 1.0, 1.0)):
        with pytest.raises(CheckpointError, match=r"pass prediction='epsilon' or 'v' \(--prediction\)") as error:
            probe_prediction(network, SCHEDULE, None, label="m.safetensors")
        assert str(error.value).startswith("m.safetensors: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
def test_trained_networks(prediction: Prediction) -> None:
    """A U-Net trained for a few seconds on smooth random pictures."""
    torch.manual_seed(0)
    network = UNet(CONFIG)
    model = DiffusionModel(network, SCHEDULE, prediction)
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    for _ in range(60):
        x0 = nn.functional.interpolate(torch.randn(8, 4, 2, 2), size=(16, 16), mode="bilinear")
        sigma = SCHEDULE.sigmas[torch.randint(1000, (8,))]
        x = x0 + sigma.float().view(-1, 1, 1, 1) * torch.randn(x0.shape)
        loss = (model.raw(x, sigma, Conditioning()) - model.target(x0, x, sigma)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert probe_prediction(network.eval(), SCHEDULE, None, label="x", size=16) is prediction
