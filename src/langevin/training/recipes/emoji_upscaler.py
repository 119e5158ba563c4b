"""Emoji from 32 x 32 to 128 x 128 pixels: a latent x4 upscaler with noise-level conditioning, in the layout of Stable
Diffusion 2's (7 input channels, 1000 noise levels as labels).

Command:   langevin train emoji-upscaler --data FOLDER --out runs/emoji-upscaler
Data:      as of the recipe emoji, whose pictures are 128 x 128 pixels or more
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 8 h of one core, reckoned from 12, 117 and 14 samples/s beside other work (benchmarks/recipes.py)
Expected:  not run to its end
"""

from __future__ import annotations

import dataclasses

from langevin.networks.unet import UNetConfig
from langevin.training.conditions import LowRes
from langevin.training.recipes.emoji import emoji
from langevin.training.text_to_image import DiffusionStage
from langevin.training.upscaler import UpscalerConfig


def emoji_upscaler() -> UpscalerConfig:
    """Emoji upscaled by four, 32 to 128 pixels, with their captions."""
    plain = emoji()
    image = dataclasses.replace(plain.clip.image, image_size=128, patch_size=16)
    return UpscalerConfig(
        data=plain.data.model_copy(update={"size": 128}),
        captions=plain.captions,
        autoencoder=plain.autoencoder.model_copy(update={"crop": 64}),
        clip=plain.clip.model_copy(update={"image": image}),
        condition=LowRes(size=32),
        diffusion=DiffusionStage(
            network=UNetConfig(
                in_channels=7, model_channels=64, channel_mult=(1, 2, 3), num_res_blocks=1,
                attention_levels=(False, True, True), middle_attention=True, num_heads=None, head_channels=64,
                context_channels=192, linear_projection=True, num_classes=1000,
                cross_attention_only_levels=(False, True, True),
            ),
            include=plain.diffusion.include,
            preview_prompts=("",) * 8,
            guidance=2.0,
            loop=plain.diffusion.loop,
        ),
    )  # fmt: skip
