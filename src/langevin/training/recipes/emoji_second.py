"""The emoji model's denoiser trained further: first on things rather than people and signs, then on faces above all.

Command:   langevin train emoji-second --data FOLDER --out runs/second --set model.path=runs/emoji/model.safetensors
           langevin train emoji-faces --data FOLDER --out runs/faces --set model.path=runs/second/model.safetensors
Data:      of the recipe `emoji` the pictures that its denoiser learns from, without people, symbols and flags (2,986 of
           996 names); in the second part an epoch shows each of the 486 faces four times
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      49 and 23 min on two cores that had other work beside it (34 and 29 images/s, medians)
Expected:  "a smiling face" smiles; docs/model-card.md for the rest
"""

from __future__ import annotations

from typing import Any

from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig
from langevin.training.finetuning.config import FullStage
from langevin.training.finetuning.systems import FullTuning
from langevin.training.objectives.levels import LevelConfig, LevelSampling
from langevin.training.recipes.emoji import PROMPTS, STYLES

LEFT_OUT = ("People & Body", "Symbols", "Flags")


def emoji_second() -> FullTuning:
    """The emoji model's denoiser trained further, on things rather than people and signs."""
    return _further({}, LoopConfig(steps=1500, learning_rate=3e-4, **_LOOP))


def emoji_faces() -> FullTuning:
    """The emoji model's denoiser trained a last time, so that faces have the expressions that they are called by."""
    return _further({"group": {"Smileys & Emotion": 4}}, LoopConfig(steps=600, learning_rate=2e-4, **_LOOP))


_LOOP: dict[str, Any] = {"batch_size": 64, "warmup": 100, "save_every": 100, "sample_every": 250}


def _further(repeat: dict[str, dict[str, int]], loop: LoopConfig) -> FullTuning:
    return FullTuning(
        data=DataConfig(
            size=64,
            include={"set": ("main",), "style": ("fluent-3d", "fluent-color", "fluent-flat")},
            exclude={"group": LEFT_OUT},
            repeat=repeat,
        ),
        captions=CaptionConfig(styles=STYLES),
        full=FullStage(
            caption_dropout=0.1,
            # Around sigma = 1, where it is decided what a picture shows and what expression a face has.
            levels=LevelConfig(name=LevelSampling.LOG_NORMAL, mean=0.0, deviation=1.2),
            preview_prompts=PROMPTS,
            guidance=3.0,
            loop=loop,
        ),
    )
