"""A ControlNet for edges, of the model inside the package.

Command:   langevin train emoji-edges --data FOLDER --out runs/edges
Data:      what the denoiser of the recipe `emoji-128` learns from, with the split val, which is held out here too
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      23 min with one thread on a machine that was busy with other things, after 4 min of encoding
Expected:  edge F1 0.81 without a prompt (0.22 without control); docs/controlnet-training.md for the rest
"""

from __future__ import annotations

from langevin.training.config import LoopConfig
from langevin.training.finetuning.config import ControlStage
from langevin.training.finetuning.control import ControlTuning
from langevin.training.objectives.levels import LevelConfig, LevelSampling
from langevin.training.recipes.emoji_128 import CAPTIONS, drawings


def emoji_edges() -> ControlTuning:
    """A ControlNet for Canny edges, of the model inside the package."""
    return ControlTuning(
        data=drawings(),
        captions=CAPTIONS,
        controlnet=ControlStage(
            held_out={"split": ("val",)},
            measured=16,
            # As the model itself: around sigma = 4 it is decided what lies where.
            levels=LevelConfig(name=LevelSampling.LOG_NORMAL, mean=1.4, deviation=1.1),
            guidance=3.0,
            loop=LoopConfig(
                steps=700, batch_size=8, learning_rate=1.5e-3, warmup=30, weight_decay=0.0, ema_decay=0.97,
                save_every=100, sample_every=350,
            ),
        ),
    )  # fmt: skip
