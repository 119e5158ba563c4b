"""A model of pixels whose answer is known: Gaussian pixels, each by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel

DEVIATION = 0.25


class GaussianNetwork(nn.Module):
    """Predicts the noise exactly for pixels of mean 0, or of the label's mean."""

    def __init__(self, schedule: NoiseSchedule, means: tuple[float, ...], channels: int) -> None:
        super().__init__()
        classes = len(means) if len(means) > 1 else None
        self.config = SimpleNamespace(in_channels=channels, context_channels=None, num_classes=classes)
        self.means = nn.Parameter(torch.tensor(means, dtype=torch.float32))
        self.schedule = schedule
        self.batches: list[int] = []

    def forward(self, z: Tensor, t: Tensor, *, context: Any = None, labels: Tensor | None = None, controls: Any = None):
        self.batches.append(len(z))
        sigma = self.schedule.sigma(t.double()).to(z).view(-1, 1, 1, 1)
        x = z * (1 + sigma**2).sqrt()
        mean = self.means[torch.zeros(len(z), dtype=torch.int64) if labels is None else labels].view(-1, 1, 1, 1)
        x0 = mean + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - mean)
        return (x - x0) / sigma


def gaussian_bundle(
    means: tuple[float, ...] = (0.0,), channels: int = 1, size: int = 8, steps: int = 1000
) -> ModelBundle:
    """Unconditional with one mean, by class with several."""
    schedule = NoiseSchedule.linear(steps)
    network = GaussianNetwork(schedule, means, channels)
    return ModelBundle(
        diffusion=DiffusionModel(network, schedule, Prediction.EPSILON),
        info=CheckpointInfo(
            name="gaussian",
            task="unconditional" if len(means) == 1 else "class-to-image",
            prediction=Prediction.EPSILON,
            default_size=(size, size),
            default_steps=8,
            default_guidance=1.0,
        ),
    )
