"""Text to emoji at 64 x 64 pixels: a smaller sister of the model inside the package.

Command:   langevin train emoji --data FOLDER --out runs/emoji
Data:      captioned emoji in WebDataset shards (10,249 pictures in seven styles without share-alike)
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 1 h 45 min on two cores: 22 min, 12 min and, by its measured speed, about 70 min for the three stages
Expected:  reconstructions at 31 dB PSNR; 0.75 of the captions found in a batch of 128
"""

from __future__ import annotations

from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.clip import ClipImageConfig, ClipTextConfig
from langevin.networks.unet import UNetConfig
from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig
from langevin.training.text_to_image import AutoencoderStage, ClipStage, DiffusionStage, TextToImageConfig

STYLES = {
    "noto": ("soft shaded",),
    "noto-blob": ("flat blob",),
    "fluent-3d": ("3d render", "3d"),
    "fluent-color": ("glossy vector", "glossy"),
    "fluent-flat": ("flat",),
    "fluent-high-contrast": ("black and white icon",),
    "twemoji": ("flat rounded",),
}

PROMPTS = (
    "a red apple", "a cat", "a smiling face", "a house",
    "a dog", "a sunflower", "a blue heart", "a pizza",
    "a fish", "a car", "a tree", "a rocket",
    "a ghost", "a cup of coffee, 3d render", "a star", "an umbrella, flat",
)  # fmt: skip


def emoji() -> TextToImageConfig:
    """Text to emoji, 64 x 64 pixels, 20 million parameters."""
    return TextToImageConfig(
        data=DataConfig(size=64, include={"set": ("main",)}, exclude={"style": ("openmoji",)}),
        # The black-and-white icons are always called so: "a cat" is to be in colour.
        captions=CaptionConfig(styles=STYLES, always_styled=("fluent-high-contrast",)),
        autoencoder=AutoencoderStage(
            network=AutoencoderConfig(base_channels=64, channel_mult=(1, 1, 2), num_res_blocks=1, latent_channels=4),
            loop=LoopConfig(
                steps=2500, batch_size=16, learning_rate=6e-4, warmup=100, weight_decay=0.0,
                ema_decay=0.998, save_every=500, sample_every=500,
            ),
        ),
        clip=ClipStage(
            vocabulary=2048,
            text=ClipTextConfig(
                vocabulary=2048, width=192, layers=3, heads=3, mlp_width=768, activation="gelu", projection=192
            ),
            image=ClipImageConfig(
                image_size=64, patch_size=8, width=192, layers=4, heads=3, mlp_width=768,
                activation="gelu", projection=192,
            ),
            loop=LoopConfig(
                steps=1500, batch_size=128, learning_rate=1e-3, warmup=100, weight_decay=0.1,
                beta2=0.98, ema_decay=0.995, save_every=250, sample_every=500,
            ),
        ),
        diffusion=DiffusionStage(
            network=UNetConfig(
                model_channels=96, channel_mult=(1, 2, 2), num_res_blocks=1, attention_levels=(False, True, True),
                middle_attention=True, num_heads=None, head_channels=64, context_channels=192, linear_projection=True,
            ),
            # Three renderings of one set of drawings: what a name looks like is then nearly always the same, and few
            # passes are enough to learn it.
            include={"style": ("fluent-3d", "fluent-color", "fluent-flat")},
            preview_prompts=PROMPTS,
            loop=LoopConfig(
                steps=4800, batch_size=64, learning_rate=5e-4, warmup=300, save_every=250, sample_every=500
            ),
        ),
    )  # fmt: skip
