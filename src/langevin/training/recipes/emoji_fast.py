"""A LoRA with which the model inside the package makes do with four steps and no guidance.

Command:   langevin train emoji-fast --data FOLDER --out runs/fast
Data:      of the recipe `emoji` the pictures that `emoji-second` is trained on
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 1 h 40 min for one thread, reckoned from 0.18 s of processor time a picture
Expected:  after 2,000 of the 32,000 pictures: own names nearest 12 of 12, mean distance to the drawing 0.123 in four
           calls of the network, where the model has 0.103 in eight (docs/distillation.md); not run to its end
"""

from __future__ import annotations

from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig
from langevin.training.finetuning.config import DistillStage
from langevin.training.finetuning.distill import Distillation
from langevin.training.finetuning.parts import LoraOptions, LoraTarget
from langevin.training.objectives.levels import LevelConfig, LevelSampling
from langevin.training.recipes.emoji import PROMPTS, STYLES
from langevin.training.recipes.emoji_second import LEFT_OUT


def emoji_fast() -> Distillation:
    """Four steps for the model inside the package, as a LoRA."""
    return Distillation(
        data=DataConfig(
            size=64,
            include={"set": ("main",), "style": ("fluent-3d", "fluent-color", "fluent-flat")},
            exclude={"group": LEFT_OUT},
        ),
        captions=CaptionConfig(styles=STYLES),
        distill=DistillStage(
            lora=LoraOptions(rank=32, alpha=32.0, targets=(LoraTarget.TRANSFORMER, LoraTarget.CONVOLUTION)),
            guidance=3.0,
            # A quarter of the schedule: what has been learned at low noise is four hops away from the highest, not
            # fifty, and a short run has to bring it there.
            skip=250,
            solver_steps=2,
            levels=LevelConfig(name=LevelSampling.GRID, steps=4),
            preview_prompts=PROMPTS,
            loop=LoopConfig(
                steps=2000, batch_size=16, learning_rate=1e-3, warmup=50, weight_decay=0.0, ema_decay=0.99,
                save_every=50, sample_every=250,
            ),
        ),
    )  # fmt: skip
