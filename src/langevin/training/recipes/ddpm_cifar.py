"""CIFAR-10 with the network of the DDPM paper: for those who have the data and a GPU.

Command:   langevin train ddpm-cifar --data FOLDER --out runs/ddpm-cifar
Data:      the 50,000 training pictures of CIFAR-10, in class folders or shards
Hardware:  one GPU or more; the paper's own run took 8 TPU v3 cores 10.6 hours for 800,000 steps
Time:      no GPU was measured; two CPU cores would take 92 days, by the 12.9 pictures/s of benchmarks/training_step.py
Expected:  the paper reports FID 3.17 on the training set. We have not run this recipe to its end
"""

from __future__ import annotations

from langevin.networks.unet import UNetConfig
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig
from langevin.training.pixel_diffusion import PixelDiffusion, PixelStage


def ddpm_cifar() -> PixelDiffusion:
    """DDPM on CIFAR-10 as in the paper: 35.7 million parameters (Ho et al. 2020, appendix B); unconditional."""
    return PixelDiffusion(
        data=DataConfig(size=32, flip=0.5),
        diffusion=PixelStage(
            network=UNetConfig(
                in_channels=3, out_channels=3, model_channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=2,
                attention_levels=(False, True, False, False), middle_attention=True, num_heads=1,
                context_channels=None, dropout=0.1,
            ),
            # The rate is constant after the warm-up, and Adam's second moment and weight decay are the paper's.
            loop=LoopConfig(
                steps=800_000, batch_size=128, learning_rate=2e-4, warmup=5000, final_rate=1.0, weight_decay=0.0,
                beta2=0.999, ema_decay=0.9999, precision="float32", log_every=100, save_every=10_000,
                sample_every=10_000,
            ),
        ),
    )  # fmt: skip
