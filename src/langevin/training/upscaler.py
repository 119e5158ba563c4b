"""The x4 upscaler in latent space, laid out as that of Stable Diffusion 2: the small picture is noised to a level that
the network is told, and stands beside the latent, whose size it has."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from langevin.checkpoints.config import UPSCALER
from langevin.diffusion.schedule import NoiseSchedule
from langevin.training.conditioned import ConditionedConfig
from langevin.training.conditions import LowRes


class UpscalerConfig(ConditionedConfig):
    """Four times the width and height: an autoencoder of factor 4, so that latent and small picture are of one size."""

    condition: LowRes

    trial: ClassVar[tuple[str, ...]] = (
        *ConditionedConfig.trial,
        "autoencoder.network.channel_mult=[1, 1, 1]",
        "condition.size=8",
        "clip.image.patch_size=8",
        "diffusion.network.cross_attention_only_levels=[false, true]",
    )

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the latents and of the small picture alike."""
        return UPSCALER.make()

    @model_validator(mode="after")
    def _is_an_upscaler(self) -> UpscalerConfig:
        factor = self.autoencoder.network.factor
        if factor != 4:
            raise ValueError(f"autoencoder.network.channel_mult makes the factor {factor}: the x4 upscaler has 4")
        if self.condition.size * 4 != self.data.size:
            raise ValueError(f"condition.size {self.condition.size} is not a quarter of data.size {self.data.size}")
        return self

    def tables(self) -> dict[str, Tensor]:
        """Those of both schedules, as in the published file."""
        return schedule_tables(self.schedule)


def schedule_tables(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The float32 tables by which other programs tell the schedules: of the latents, and, as `low_scale_model.*`, of
    the small picture. All follow from the betas (Ho et al. 2020, equations 4 and 7)."""
    betas, abar = schedule.betas, schedule.abar
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    noising = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": abar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": schedule.sigmas,
    }
    variance = betas * (1 - before) / (1 - abar)
    denoising = {
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - abar),
    }
    named = {**noising, **denoising, **{f"low_scale_model.{name}": value for name, value in noising.items()}}
    return {name: value.float() for name, value in named.items()}
