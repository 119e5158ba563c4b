"""The numbers that the original training code leaves in its files beside the weights: noise schedule, latent scale."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin.checkpoints.config import KNOWN_SCHEDULES, STABLE_DIFFUSION, UPSCALER, ScheduleConfig
from langevin.checkpoints.recognise import Contents
from langevin.checkpoints.sidecar import Sidecar
from langevin.checkpoints.tensorfile import TensorFile
from langevin.errors import CheckpointError


def stated_schedule(
    contents: Contents, file: TensorFile, sidecar: Sidecar | None, *, upscaler: bool
) -> tuple[ScheduleConfig, list[str]]:
    """The schedule, from the tables in the file if they are there, and notices."""
    rule = UPSCALER if upscaler else STABLE_DIFFUSION
    if sidecar is not None and (sidecar.beta_start is not None or sidecar.beta_end is not None):
        rule = ScheduleConfig(
            beta_start=sidecar.beta_start or rule.beta_start, beta_end=sidecar.beta_end or rule.beta_end
        )
    if "ztsnr" in contents.extras:
        return ScheduleConfig(beta_start=rule.beta_start, beta_end=rule.beta_end, zero_terminal_snr=True), []
    if "alphas_cumprod" not in contents.extras:
        return rule, []
    table = file.read("alphas_cumprod")
    if table.ndim != 1 or len(table) < 2 or not table.is_floating_point():
        raise CheckpointError(f"{file.label}: alphas_cumprod is {table.dtype} {list(table.shape)}, expected a table")
    # Tables made in float32 are off by a few units in the last place.
    tolerance = max(4 * torch.finfo(table.dtype).eps, 2e-6)
    for known in (rule, *KNOWN_SCHEDULES):
        abar = known.make().abar
        if len(abar) == len(table) and (table.double() - abar).abs().max() <= tolerance:
            return known, []
    if table.dtype not in (torch.float32, torch.float64):
        return rule, [f"alphas_cumprod is stored as {table.dtype}, too coarse to use; the usual schedule is assumed"]
    return _from_table(table.double(), file.label), ["the noise schedule is the file's own table"]


def _from_table(abar: Tensor, label: str) -> ScheduleConfig:
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    config = ScheduleConfig(kind="betas", steps=len(abar), betas=tuple(betas.tolist()))
    try:
        config.make()
    except ValueError as error:
        raise CheckpointError(f"{label}: alphas_cumprod is no noise schedule: {error}") from None
    return config


def stated_scale(contents: Contents, file: TensorFile, sidecar: Sidecar | None, *, upscaler: bool) -> float:
    """The factor of the latents."""
    if "scale_factor" in contents.extras:
        value = file.read("scale_factor")
        if value.numel() == 1 and bool(torch.isfinite(value.float()).all()) and float(value) > 0:
            return float(value)
        raise CheckpointError(f"{file.label}: scale_factor is {value.tolist()}, expected one positive number")
    if sidecar is not None and sidecar.scale_factor is not None:
        return sidecar.scale_factor
    return 0.08333 if upscaler else 0.18215
