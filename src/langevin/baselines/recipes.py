"""Recipes of the baselines, on Fashion-MNIST (idx files, 28 x 28, grey, the training split).

Command:   langevin train gan-fashion --data FOLDER --out runs/gan     (or pixelcnn-, imagegpt-, latent-fashion)
Data:      train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, 60,000 pictures
Hardware:  a CPU
Time:      about 40 min (gan), 95 (pixelcnn), 210 (imagegpt) and 50 (latent) of one core, reckoned from 538, 28, 13 and
           140 + 307 pictures/s of its processor time beside other work
Expected:  after six minutes each: Frechet distance 16.3, 53.4, 45.2 and 6.4 in a classifier's features
           (docs/baselines.md); not run to their full number of steps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from langevin.baselines.gan import GanStage, GanSystem
from langevin.baselines.gan_network import GanConfig
from langevin.baselines.imagegpt import ImageGptStage, ImageGptSystem
from langevin.baselines.imagegpt_network import ImageGptConfig
from langevin.baselines.latent import CodecStage, LatentStage, LatentSystem
from langevin.baselines.pixelcnn import PixelCnnStage, PixelCnnSystem
from langevin.baselines.pixelcnn_network import PixelCnnConfig
from langevin.networks.autoencoder import AutoencoderConfig
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig
from langevin.training.recipes.fashion import ddpm_fashion
from langevin.training.system import System

_DATA = DataConfig(size=28, include={"split": ("train",)})


def gan_fashion() -> GanSystem:
    """A GAN with the non-saturating loss and R1 on 28 x 28 grey pictures."""
    return GanSystem(
        data=_DATA,
        gan=GanStage(
            network=GanConfig(size=28, latent=64, width=64, channel_mult=(1, 2)),
            r1=0.5,
            r1_every=4,
            loop=LoopConfig(
                steps=20000, batch_size=64, learning_rate=5e-4, warmup=100, final_rate=0.1, weight_decay=0.0,
                beta1=0.5, beta2=0.99, clip=1000.0, ema_decay=0.996,
                log_every=100, save_every=1000, sample_every=1000,
            ),
        ),
    )  # fmt: skip


def pixelcnn_fashion() -> PixelCnnSystem:
    """A PixelCNN++ on 28 x 28 grey pictures."""
    return PixelCnnSystem(
        data=_DATA,
        pixelcnn=PixelCnnStage(
            network=PixelCnnConfig(size=28, width=32, levels=3, blocks=1, components=5),
            loop=LoopConfig(
                steps=10000, batch_size=16, learning_rate=1e-3, warmup=100, weight_decay=0.0, beta2=0.99,
                ema_decay=0.995, precision="float32", save_every=500, sample_every=1000,
            ),
        ),
    )  # fmt: skip


def imagegpt_fashion() -> ImageGptSystem:
    """An ImageGPT over the 256 levels of 28 x 28 grey pixels."""
    return ImageGptSystem(
        data=_DATA,
        imagegpt=ImageGptStage(
            network=ImageGptConfig(size=28, clusters=None, width=64, layers=4, heads=4),
            loop=LoopConfig(
                steps=10000, batch_size=16, learning_rate=3e-3, warmup=100, weight_decay=0.01, beta2=0.95,
                ema_decay=0.995, save_every=500, sample_every=1000,
            ),
        ),
    )  # fmt: skip


def latent_fashion() -> LatentSystem:
    """An autoencoder of 28 x 28 pictures and unconditional diffusion on its 7 x 7 latents."""
    return LatentSystem(
        data=_DATA,
        autoencoder=CodecStage(
            network=AutoencoderConfig(
                base_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1, latent_channels=4, groups=8
            ),
            kl_weight=1e-3,
            loop=LoopConfig(
                steps=4000, batch_size=32, learning_rate=1e-3, warmup=100, weight_decay=0.0, ema_decay=0.995,
                save_every=500, sample_every=1000,
            ),
        ),
        diffusion=LatentStage(
            # The U-Net of ddpm-fashion, but for its input and output.
            network=replace(ddpm_fashion().diffusion.network, in_channels=4, out_channels=4),
            loop=LoopConfig(
                steps=20000, batch_size=32, learning_rate=8e-4, warmup=300, weight_decay=0.0,
                save_every=500, sample_every=1000,
            ),
        ),
    )  # fmt: skip


RECIPES: Mapping[str, Callable[[], System]] = {
    "gan-fashion": gan_fashion,
    "pixelcnn-fashion": pixelcnn_fashion,
    "imagegpt-fashion": imagegpt_fashion,
    "latent-fashion": latent_fashion,
}
