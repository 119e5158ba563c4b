"""The emoji model's denoiser trained further, on things rather than people and signs: the weights in the package.

Command:   langevin train emoji-second --data FOLDER --out runs/second --set model.path=runs/emoji/model.safetensors
Data:      of the recipe `emoji` the pictures that its denoiser learns from, without people, symbols and flags (2,986 of
           996 names)
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      not measured
Expected:  "a smiling face" smiles; docs/model-card.md for the rest
"""

from __future__ import annotations

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
    return FullTuning(
        data=DataConfig(
            size=64,
            include={"set": ("main",), "style": ("fluent-3d", "fluent-color", "fluent-flat")},
            exclude={"group": LEFT_OUT},
        ),
        captions=CaptionConfig(styles=STYLES),
        full=FullStage(
            caption_dropout=0.1,
            # Around sigma = 1, where it is decided what a picture shows and what expression a face has.
            levels=LevelConfig(name=LevelSampling.LOG_NORMAL, mean=0.0, deviation=1.2),
            preview_prompts=PROMPTS,
            guidance=3.0,
            loop=LoopConfig(
                steps=1500, batch_size=64, learning_rate=3e-4, warmup=100, save_every=100, sample_every=250
            ),
        ),
    )
