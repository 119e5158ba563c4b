"""Text to emoji in pixel space: a base of 16 x 16 pixels and an upscaler to 64 x 64, to compare with the latent system.

Command:   langevin train emoji-cascade --data FOLDER --out runs/emoji-cascade
Data:      as of the recipe emoji
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 9 h of one core, reckoned from 99, 20 and 10 samples/s beside other work (benchmarks/recipes.py)
Expected:  not run to its end
"""

from __future__ import annotations

from langevin.networks.unet import UNetConfig
from langevin.training.cascade import BaseStage, CascadeConfig, UpscalerStage
from langevin.training.recipes.emoji import PROMPTS, emoji


def emoji_cascade() -> CascadeConfig:
    """Text to emoji without an autoencoder: 16 x 16 pixels, then 64 x 64."""
    plain = emoji()
    loop = plain.diffusion.loop
    return CascadeConfig(
        data=plain.data,
        captions=plain.captions,
        clip=plain.clip,
        small=16,
        base=BaseStage(
            network=UNetConfig(
                in_channels=3, out_channels=3, model_channels=96, channel_mult=(1, 2, 2), num_res_blocks=1,
                attention_levels=(False, True, True), middle_attention=True, num_heads=None, head_channels=64,
                context_channels=192, linear_projection=True,
            ),
            include=plain.diffusion.include,
            preview_prompts=PROMPTS,
            loop=loop,
        ),
        upscaler=UpscalerStage(
            network=UNetConfig(
                in_channels=6, out_channels=3, model_channels=32, channel_mult=(1, 2, 4, 4), num_res_blocks=1,
                attention_levels=(False, False, True, True), middle_attention=True, num_heads=None, head_channels=64,
                context_channels=192, linear_projection=True, num_classes=1000,
            ),
            include=plain.diffusion.include,
            preview_prompts=("",) * 8,
            guidance=2.0,
            loop=loop.model_copy(update={"batch_size": 32}),
        ),
    )  # fmt: skip
