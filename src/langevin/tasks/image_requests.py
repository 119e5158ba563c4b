"""The options of the tasks that change a picture. Does not import torch."""

from __future__ import annotations

from pydantic import Field

from langevin.tasks.request import GenerateRequest

LEAST_STRENGTH = 0.01


class ImageToImageRequest(GenerateRequest):
    """Pictures from a picture and a text. `width` and `height` are the picture's unless they are given."""

    strength: float = Field(
        0.6,
        ge=LEAST_STRENGTH,
        le=1,
        description="Share of the run that is done, from the picture noised as far: 1 keeps hardly anything of it.",
    )
