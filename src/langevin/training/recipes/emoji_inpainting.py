"""Text and a masked picture to emoji: a denoiser of 9 input channels, laid out as Stable Diffusion's for inpainting.

Command:   langevin train emoji-inpainting --data FOLDER --out runs/emoji-inpainting
Data:      as of the recipe emoji
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 7 h of one core, reckoned from 12, 102 and 16 samples/s beside other work (benchmarks/recipes.py)
Expected:  of autoencoder and CLIP as of `emoji`; the denoiser was not run to its end
"""

from __future__ import annotations

import dataclasses

from langevin.training.conditioned import ConditionedConfig
from langevin.training.conditions import Inpainting
from langevin.training.recipes.emoji import emoji


def emoji_inpainting() -> ConditionedConfig:
    """Emoji completed under a mask, 64 x 64 pixels."""
    plain = emoji()
    network = dataclasses.replace(plain.diffusion.network, in_channels=9)
    diffusion = plain.diffusion.model_copy(update={"network": network, "preview_prompts": ("",) * 8})
    parts = {name: getattr(plain, name) for name in ("seed", "data", "captions", "autoencoder", "clip")}
    return ConditionedConfig(**parts, diffusion=diffusion, condition=Inpainting())
