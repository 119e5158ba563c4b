"""Drawn shapes from 8 x 8 to 32 x 32 pixels: a latent x4 upscaler with noise-level conditioning, in the layout of
Stable Diffusion 2's (7 input channels, 1000 noise levels as labels). Its autoencoder also has a perceptual and an
adversarial term.

Command:   langevin train shapes-upscaler --data shapes --out runs/shapes-upscaler
Data:      langevin shapes shapes
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 50 min of one core beside other work: 15 for CLIP, 10 for the autoencoder, 25 for the denoiser
Expected:  of held-out scenes 24.2 dB PSNR, Lanczos has 23.5; 0.27 are just as their caption says, chance 0.02
           (docs/upscaler-training.md); the autoencoder is at 33 dB. More steps were not tried
"""

from __future__ import annotations

import dataclasses

from langevin.networks.discriminator import DiscriminatorConfig
from langevin.networks.unet import UNetConfig
from langevin.training.conditions import LowRes
from langevin.training.config import LoopConfig
from langevin.training.objectives.adversarial import AdversarialConfig
from langevin.training.objectives.perceptual import PerceptualConfig
from langevin.training.recipes.shapes import shapes
from langevin.training.text_to_image import DiffusionStage
from langevin.training.upscaler import UpscalerConfig


def shapes_upscaler() -> UpscalerConfig:
    """Drawn shapes upscaled by four, 8 to 32 pixels, with their captions.

    The autoencoder is sharpened by features of the run's own CLIP and by a discriminator."""
    plain = shapes()
    autoencoder = plain.autoencoder.model_copy(
        update={
            "network": dataclasses.replace(plain.autoencoder.network, channel_mult=(1, 1, 2)),
            "perceptual": PerceptualConfig(weight=0.1),
            # From the second half on, when there is something to judge.
            "adversarial": AdversarialConfig(
                network=DiscriminatorConfig(base_channels=32, layers=2), weight=0.1, start=600
            ),
            # Without the squares, which are those of `shapes`, the reconstructions end at 24 dB, in other colours.
            "loop": plain.autoencoder.loop.model_copy(update={"steps": 1200}),
        }
    )
    return UpscalerConfig(
        data=plain.data,
        captions=plain.captions,
        autoencoder=autoencoder,
        clip=plain.clip,
        condition=LowRes(size=8),
        diffusion=DiffusionStage(
            network=UNetConfig(
                in_channels=7, model_channels=96, channel_mult=(1, 2), num_res_blocks=1,
                attention_levels=(True, True), middle_attention=True, num_heads=None, head_channels=32,
                context_channels=128, linear_projection=True, num_classes=1000,
                cross_attention_only_levels=(True, False),
            ),
            preview_prompts=("",) * 8,
            guidance=2.0,
            # Not the loop of `shapes`, with which it has not been measured.
            loop=LoopConfig(
                steps=1200, batch_size=64, learning_rate=8e-4, warmup=300, save_every=250, sample_every=1000
            ),
        ),
    )  # fmt: skip
