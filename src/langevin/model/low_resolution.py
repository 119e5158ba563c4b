"""The small picture that an upscaler stands on, noised to a level that it is told."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.conditioning import Conditioning


def noised_picture(
    small: Tensor, levels: Tensor, noise: Tensor, schedule: NoiseSchedule, grid: tuple[int, int]
) -> Conditioning:
    """sqrt(abar) small + sqrt(1 - abar) noise, stretched bilinearly to `grid`, and the levels as labels (Ho et al.
    2022, section 4.2; the x4 upscaler of Stable Diffusion 2).

    small, noise: B 3 h w, small in [-1, 1]; levels: int64 [B], timesteps of `schedule`; grid: height and width of the
    network's input.
    """
    abar = schedule.abar[levels.cpu()].to(small).view(-1, 1, 1, 1)
    noised = abar.sqrt() * small + (1 - abar).sqrt() * noise
    if noised.shape[-2:] != grid:
        noised = F.interpolate(noised, grid, mode="bilinear", align_corners=False)
    return Conditioning(concat=noised, labels=levels)
