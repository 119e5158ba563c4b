"""What a task adds to plain generation, in one place: each field is nothing by default."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from langevin.diffusion.core import Denoiser
from langevin.images.png import pixels_sha256
from langevin.model.conditioning import Conditioning
from langevin.model.image_prompt import ImagePrompts


@dataclass(frozen=True, eq=False)
class Input:
    """A picture that a task was given beside its request: named in the manifest, so that the run can be repeated."""

    role: str
    """What it is for: "image", "mask", "depth", "control 0" ..."""
    picture: Image.Image
    path: str | os.PathLike[str] | None = None
    """Where it came from, if from a file."""

    def describe(self) -> dict[str, Any]:
        """Ready for JSON. A manifest may name a file, not a place: of the path the last part alone."""
        return {
            "role": self.role,
            "name": None if self.path is None else Path(self.path).name,
            "mode": self.picture.mode,
            "width": self.picture.width,
            "height": self.picture.height,
            "pixels_sha256": pixels_sha256(self.picture),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """What `plan_pictures` is told beyond the model and the request."""

    beside: Conditioning | None = None
    """`concat`, `labels`, `controls` and `adapters` of one image, which every picture is given with and without the
    text; controls in guess mode with the prompt alone."""
    images: ImagePrompts | None = None
    """Pictures that the U-Net is told of beside the prompt."""
    start: Tensor | None = None
    """Clean latents (with a model of pixels: pixels), 1 C h w or one for each picture, that sampling starts from:
    noised to the level that `strength` gives. None: from noise alone."""
    strength: float = 1.0
    """With `start`: the share of the run that is done, in (0, 1]; see `langevin.diffusion.grids.truncated`."""
    skipped: tuple[int, int] = (0, 0)
    """As in `Noise`: draws of each picture's stream that are spent already, and those that are between."""
    before: tuple[int, ...] | None = None
    """As in `Noise`: the shape of what each picture's stream has given already."""
    wrap: Callable[[Denoiser], Denoiser] | None = None
    """Put around the guided denoiser, also around the one in float32 that takes over where numbers overflow."""
    finish: Callable[[Image.Image], Image.Image] | None = None
    """What becomes of each picture last: pasting it back into a larger one, bringing back what was not to change."""
    measure: Callable[[Image.Image], Mapping[str, float]] | None = None
    """Figures of each finished picture, by name: for the manifest and the notices."""
    inputs: tuple[Input, ...] = ()
    """Named in the manifest."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says further: "task", and the options that the request does not have."""
    notices: tuple[str, ...] = ()
