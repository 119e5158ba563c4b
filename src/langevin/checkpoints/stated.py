"""What a single file says of itself: prediction type, trained size. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from langevin.checkpoints.recognise import Contents
from langevin.checkpoints.sidecar import PREDICTIONS, Sidecar
from langevin.errors import CheckpointError

MODELSPEC_PREDICTION = "modelspec.prediction_type"
MODELSPEC_RESOLUTION = "modelspec.resolution"

GLOBAL_STEPS = {875_000: "epsilon", 220_000: "epsilon", 110_000: "v"}
"""Training steps that the published 2.x pickles state: 2-base, 2-1-base, 2-1 (768 pixels)."""


class Stated(NamedTuple):
    """A fact and where it comes from."""

    prediction: str | None
    """The value of a `Prediction`."""
    source: str
    """In words."""
    inside: bool
    """The file itself says so."""


def stated_prediction(
    given: str | None,
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
        return Stated(PREDICTIONS[text.lower()], f"the file's {MODELSPEC_PREDICTION}", True)
    if "v_pred" in contents.extras:
        return Stated("v", "the file's v_pred marker", True)
    if sidecar is not None and sidecar.prediction is not None:
        return Stated(sidecar.prediction, str(sidecar.path), False)
    if context == 768:
        return Stated("epsilon", "Stable Diffusion 1.x predicts noise", True)
    if context == 1024:
        if beside_latent == 3:
            return Stated("v", "the x4 upscaler predicts v", True)
        if beside_latent > 0:
            return Stated("epsilon", "2.x for inpainting and depth predicts noise", True)
        if global_step in GLOBAL_STEPS:
            return Stated(GLOBAL_STEPS[global_step], f"the file's global_step of {global_step:,}", True)
    return Stated(None, "nothing says", False)


def stated_size(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height of modelspec.resolution ("512x768" or "512")."""
    found = re.fullmatch(r"(\d{2,5})(?:x(\d{2,5}))?", metadata.get(MODELSPEC_RESOLUTION, ""))
    return None if found is None else (int(found[1]), int(found[2] or found[1]))
