"""Drawn shapes from a text and a map: of depth (5 input channels), or of classes (10: five classes beside the latent
would be read as inpainting, so there is a sixth that does not occur).

Command:   langevin train shapes-depth --data shapes --out runs/shapes-depth        (shapes-semantic alike)
Data:      langevin shapes shapes --count 10000 --size 64
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      not measured
Expected:  not measured
"""

from __future__ import annotations

import dataclasses

from langevin.training.captions import CaptionConfig
from langevin.training.conditioned import ConditionedConfig
from langevin.training.conditions import Condition, Depth, Semantic
from langevin.training.data import DataConfig
from langevin.training.recipes.emoji import emoji


def shapes_depth() -> ConditionedConfig:
    """Drawn shapes from a text and a depth map, 64 x 64 pixels."""
    return _shapes(Depth(), 5)


def shapes_semantic() -> ConditionedConfig:
    """Drawn shapes from a text and a map of classes, 64 x 64 pixels."""
    return _shapes(Semantic(classes=6), 10)


def _shapes(condition: Condition, channels: int) -> ConditionedConfig:
    plain = emoji()
    network = dataclasses.replace(plain.diffusion.network, in_channels=channels)
    clip = plain.clip.model_copy(update={"vocabulary": 544})
    return ConditionedConfig(
        data=DataConfig(size=64, include={"split": ("train",)}),
        captions=CaptionConfig(article_share=0.0),
        autoencoder=plain.autoencoder,
        clip=clip,
        diffusion=plain.diffusion.model_copy(update={"network": network, "include": {}, "preview_prompts": ("",) * 8}),
        condition=condition,
    )
