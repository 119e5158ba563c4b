"""Pictures as prompts: how they are brought to CLIP's image tower, and what a run is told of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.errors import RequestError
from langevin.images.pixels import to_rgb
from langevin.model.bundle import ModelBundle
from langevin.model.image_prompt import ImagePrompts
from langevin.tasks.setup import Input


def image_prompts(bundle: ModelBundle, given: Sequence[Input], strengths: Sequence[float]) -> ImagePrompts | None:
    """What the pictures say, picture i through IP-Adapter i of those beside the model. None without any.

    RequestError where there are not as many pictures as IP-Adapters, or as strengths.
    """
    prompters = bundle.image_prompters
    if len(given) != len(prompters):
        raise RequestError(
            f"{len(given)} pictures as prompts and {len(prompters)} IP-Adapters: give each its own (--ip-adapter)"
        )
    if len(given) != len(strengths):
        raise RequestError(f"{len(strengths)} strengths for {len(given)} pictures as prompts: give one for each")
    if not given:
        return None
    pixels = [
        clip_pixels(asked.picture, prompter.encoder.tower.config.image_size)
        for asked, prompter in zip(given, prompters, strict=True)
    ]
    return ImagePrompts.of(prompters, pixels, strengths)


def clip_pixels(picture: Image.Image, size: int) -> Tensor:
    """float32 1 3 S S in [0, 1] of a picture of any mode: its shorter side is brought to the size by bicubic
    interpolation, and the middle is cut out, as CLIP's pictures are."""
    rgb = to_rgb(picture)
    short = min(rgb.size)
    width, height = (size if side == short else size * side // short for side in rgb.size)
    fitted = rgb.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = torch.from_numpy(np.array(fitted.crop((left, top, left + size, top + size))))  # S S 3
    return (pixels.permute(2, 0, 1).float() / 255).unsqueeze(0)
