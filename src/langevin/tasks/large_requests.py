"""The options of the tasks that make large pictures. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from langevin.tasks.options import Shown
from langevin.tasks.request import GenerateRequest

LEVEL = 20
"""The usual noise level of the small picture."""
LEAST_FACTOR = 1.01


class UpscaleRequest(GenerateRequest):
    """A large picture from a small one. `width` and `height` are the result's, and may be left out."""

    noise_level: int = Field(
        LEVEL,
        ge=0,
        description="Timestep that the small picture is noised to first: 0 keeps all of it, flaws too; 350 hardly more "
        "than its colours and masses.",
    )


class LargeRequest(GenerateRequest):
    """A picture in two passes. `width` and `height` are the result's."""

    hires: Annotated[Annotated[float, Field(ge=LEAST_FACTOR, le=16)] | None, Shown("2, or what the size asks for")] = (
        Field(None, description="How many times as wide and high as the first pass the picture is.")
    )
    hires_strength: float = Field(
        0.5, ge=0.01, le=1, description="Share of the second run that is done, from the enlarged picture noised as far."
    )
    hires_upscale: Literal["lanczos", "latent"] = Field(
        "lanczos",
        description="How the first pass is enlarged: as a picture by Lanczos' filter, or as a latent, bicubically.",
    )
