"""Drawn shapes from a text and a picture: a map of depth (5 input channels), a map of classes (10: five classes beside
the latent would be read as inpainting, so there is a sixth that does not occur), or a part of the picture (9).

Command:   langevin train shapes-depth --data shapes --out runs/shapes-depth        (-semantic, -inpainting alike)
Data:      langevin shapes shapes
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      28 min of one core of a Xeon with AMX, 13 of them for autoencoder and CLIP; the denoiser makes 85 to 100
           pictures/s
Expected:  43 dB of the autoencoder, as of the recipe `shapes`. Of scenes with a held-out pair of shape and colour 0.81
           are drawn just as they were asked for with the map of depth, 0.78 with that of classes, 0.53 with one thing
           hidden and 0.67 with the text alone (`shapes`); chance 0.02 (docs/conditional-training.md)
"""

from __future__ import annotations

import dataclasses

from langevin.training.conditioned import ConditionedConfig
from langevin.training.conditions import Condition, Depth, Inpainting, Semantic
from langevin.training.recipes.shapes import shapes


def shapes_depth() -> ConditionedConfig:
    """Drawn shapes from a text and a depth map, 32 x 32 pixels."""
    return _with(Depth(), 5)


def shapes_semantic() -> ConditionedConfig:
    """Drawn shapes from a text and a map of classes, 32 x 32 pixels."""
    return _with(Semantic(classes=6), 10)


def shapes_inpainting() -> ConditionedConfig:
    """Drawn shapes completed under a mask by a text, 32 x 32 pixels, laid out as Stable Diffusion's for inpainting."""
    return _with(Inpainting(), 9)


def _with(condition: Condition, channels: int) -> ConditionedConfig:
    """The recipe `shapes` with further input channels: its autoencoder and CLIP can be copied from a run of it."""
    plain = shapes()
    network = dataclasses.replace(plain.diffusion.network, in_channels=channels)
    loop = plain.diffusion.loop.model_copy(update={"steps": 1200})
    diffusion = plain.diffusion.model_copy(update={"network": network, "preview_prompts": ("",) * 8, "loop": loop})
    parts = {name: getattr(plain, name) for name in ("seed", "data", "captions", "autoencoder", "clip")}
    return ConditionedConfig(**parts, diffusion=diffusion, condition=condition)
