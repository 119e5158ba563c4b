"""What a checkpoint says of itself beside its weights: prediction type, schedule, latent scale, trained size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from langevin.checkpoints.config import KNOWN_SCHEDULES, STABLE_DIFFUSION, UPSCALER, ScheduleConfig
from langevin.checkpoints.recognise import Contents
from langevin.checkpoints.sidecar import PREDICTIONS, Sidecar
from langevin.checkpoints.tensorfile import TensorFile
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError

MODELSPEC_PREDICTION = "modelspec.prediction_type"
MODELSPEC_RESOLUTION = "modelspec.resolution"

GLOBAL_STEPS = {875_000: "epsilon", 220_000: "epsilon", 110_000: "v"}
"""Training steps that the published 2.x pickles state: 2-base, 2-1-base, 2-1 (768 pixels)."""


class Stated(NamedTuple):
    """A fact and where it comes from."""

    prediction: Prediction | None
    source: str
    """In words."""
    inside: bool
    """The file itself says so."""


def stated_prediction(
    given: Prediction | None,
    contents: Contents,
    metadata: Mapping[str, str],
    sidecar: Sidecar | None,
    global_step: int | None,
    *,
    context: int | None,
    beside_latent: int,
    label: str,
) -> Stated:
    """The prediction type, by the first of these that says: the caller, the file's metadata, a marker tensor, a
    configuration beside it, and the conventions of the published models.

    beside_latent: input channels that are not the latent.
    """
    if given is not None:
        return Stated(given, "given", False)
    if (text := metadata.get(MODELSPEC_PREDICTION)) is not None:
        if text.lower() not in PREDICTIONS:
            known = ", ".join(dict.fromkeys(PREDICTIONS))
            raise CheckpointError(
                f"{label}: {MODELSPEC_PREDICTION} {text[:40]!r} is not known (known: {known}); pass prediction="
            )
        return Stated(Prediction(PREDICTIONS[text.lower()]), f"the file's {MODELSPEC_PREDICTION}", True)
    if "v_pred" in contents.extras:
        return Stated(Prediction.V, "the file's v_pred marker", True)
    if sidecar is not None and sidecar.prediction is not None:
        return Stated(Prediction(sidecar.prediction), str(sidecar.path), False)
    if context == 768:
        return Stated(Prediction.EPSILON, "Stable Diffusion 1.x predicts noise", True)
    if context == 1024:
        if beside_latent == 3:
            return Stated(Prediction.V, "the x4 upscaler predicts v", True)
        if beside_latent > 0:
            return Stated(Prediction.EPSILON, "2.x for inpainting and depth predicts noise", True)
        if global_step in GLOBAL_STEPS:
            return Stated(Prediction(GLOBAL_STEPS[global_step]), f"the file's global_step of {global_step:,}", True)
    return Stated(None, "nothing says", False)


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


def stated_size(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height of modelspec.resolution ("512x768" or "512")."""
    found = re.fullmatch(r"(\d{2,5})(?:x(\d{2,5}))?", metadata.get(MODELSPEC_RESOLUTION, ""))
    return None if found is None else (int(found[1]), int(found[2] or found[1]))
