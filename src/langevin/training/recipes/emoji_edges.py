"""A ControlNet for edges, of the model inside the package.

Command:   langevin train emoji-edges --data FOLDER --out runs/edges
Data:      of the recipe `emoji` the pictures that `emoji-second` is trained on; those of its split val are held out
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      19 min with one thread on a machine that was busy with other things; 21 pictures/s when it was not
Expected:  edge F1 0.87 without a prompt (0.35 without control); docs/controlnet-training.md for the rest
"""

from __future__ import annotations

from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig
from langevin.training.finetuning.config import ControlStage
from langevin.training.finetuning.control import ControlTuning
from langevin.training.objectives.levels import LevelConfig, LevelSampling
from langevin.training.recipes.emoji import STYLES
from langevin.training.recipes.emoji_second import LEFT_OUT


def emoji_edges() -> ControlTuning:
    """A ControlNet for Canny edges, of the model inside the package."""
    return ControlTuning(
        data=DataConfig(
            size=64,
            include={"set": ("main",), "style": ("fluent-3d", "fluent-color", "fluent-flat")},
            exclude={"group": LEFT_OUT},
        ),
        captions=CaptionConfig(styles=STYLES),
        controlnet=ControlStage(
            held_out={"split": ("val",)},
            measured=16,
            # Around and above sigma = 1, where it is decided what lies where.
            levels=LevelConfig(name=LevelSampling.LOG_NORMAL, mean=0.8, deviation=1.0),
            # By their captions the model makes these very pictures without a hint: it has seen them all. So the hint
            # has little to add to a caption, and is learned where there is none.
            preview_prompts=("",),
            caption_dropout=0.9,
            guidance=3.0,
            loop=LoopConfig(
                steps=700, batch_size=8, learning_rate=1.5e-3, warmup=30, weight_decay=0.0, ema_decay=0.97,
                save_every=100, sample_every=350,
            ),
        ),
    )  # fmt: skip
