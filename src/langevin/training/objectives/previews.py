"""What the averaged weights can do, while they are being trained."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin.diffusion.grids import make_grid
from langevin.diffusion.guidance import clipped
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.guided import guided_model


@torch.no_grad()
def sampled(
    model: DiffusionModel,
    shape: tuple[int, ...],
    count: int,
    cond: Conditioning,
    uncond: Conditioning,
    guidance: float,
    *,
    pixels: bool = False,
    sampler: str = "dpmpp_2m",
    steps: int = 20,
) -> Tensor:
    """Samples with seeds 0, 1, ..., by default 20 steps of DPM-Solver++(2M): float32 B C H W. shape: of one, C H W.
    pixels: what is sampled lies in [-1, 1]."""
    sigmas = make_grid("trailing", model.schedule, min(steps, len(model.schedule)))
    noise = Noise(range(count), shape)
    x = model.schedule.prior(noise.initial()).to(model.device)
    denoiser = guided_model(model, cond, uncond, guidance)
    if pixels:
        denoiser = clipped(denoiser)
    for step in SAMPLERS[sampler].function(denoiser, x, sigmas, noise):
        x = step.x
    return x
