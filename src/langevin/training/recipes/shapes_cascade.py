"""Text to captioned shapes in pixel space: a base of 16 x 16 pixels and an upscaler to 32 x 32, to compare with the
latent system, the recipe `shapes`.

Command:   langevin train shapes-cascade --data shapes --out runs/shapes-cascade
Data:      langevin shapes shapes
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      68 min of one core beside other work: 15 for CLIP, 30 for the base, 23 for the upscaler
Expected:  0.08 of scenes with a held-out pair of shape and colour are drawn just as their caption says, in 0.14 the
           colours are right; chance 0.01 and 0.07 (docs/upscaler-training.md). More steps were not tried
"""

from __future__ import annotations

import dataclasses

from langevin.networks.unet import UNetConfig
from langevin.training.cascade import BaseStage, CascadeConfig, UpscalerStage
from langevin.training.config import LoopConfig
from langevin.training.recipes.shapes import PROMPTS, shapes


def shapes_cascade() -> CascadeConfig:
    """Text to captioned shapes without an autoencoder: 16 x 16 pixels, then 32 x 32."""
    plain = shapes()
    # Not the loop of `shapes`, with which neither stage has been measured.
    loop = LoopConfig(steps=1200, batch_size=64, learning_rate=8e-4, warmup=300, save_every=250, sample_every=1000)
    return CascadeConfig(
        data=plain.data,
        captions=plain.captions,
        clip=plain.clip,
        small=16,
        base=BaseStage(
            network=dataclasses.replace(plain.diffusion.network, in_channels=3, out_channels=3),
            preview_prompts=PROMPTS,
            guidance=3.0,
            loop=loop,
        ),
        upscaler=UpscalerStage(
            network=UNetConfig(
                in_channels=6, out_channels=3, model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=1,
                attention_levels=(False, False, True), middle_attention=True, num_heads=None, head_channels=32,
                context_channels=128, linear_projection=True, num_classes=1000,
            ),
            preview_prompts=("",) * 8,
            guidance=2.0,
            loop=loop.model_copy(update={"steps": 800}),
        ),
    )  # fmt: skip
