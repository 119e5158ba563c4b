"""Text to emoji at 128 x 128 pixels in three styles; the concepts of the data's split `val` are never shown.

Command:   langevin train emoji-128 --data FOLDER --out runs/emoji-128
Data:      of captioned emoji in WebDataset shards the 9,688 training pictures of seven styles without share-alike, some
           with the colour that was measured of them in the caption; one in ten samples is a drawn scene of shapes. The
           denoiser learns from 2,821: three of the styles, without people, symbols and flags
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      68 min for the autoencoder and 42 for CLIP, of one core each and beside other work; 5 h 20 min of two cores
           for the denoiser, by the speeds that were logged
Expected:  reconstructions of 96 held-out pictures, scenes among them, at 33.1 dB PSNR; 0.79 of the captions found in a
           batch of 128; an error of 0.058 of x0 at sigma = 14 on 85 of its pictures, with another caption 0.84
           (`benchmarks/model_evaluation.py --parts captions` measures such errors), by a run whose first 2,589 steps
           had other levels, styles and averages; docs/model-evaluation.md for everything else
"""

from __future__ import annotations

import dataclasses

from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.unet import UNetConfig
from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig, Optimizer
from langevin.training.data import DataConfig
from langevin.training.data.config import ColourConfig, SceneConfig
from langevin.training.objectives.levels import LevelConfig, LevelSampling
from langevin.training.recipes.emoji import PROMPTS, STYLES, emoji
from langevin.training.text_to_image import AutoencoderStage, DiffusionStage, TextToImageConfig

DRAWN = {style: STYLES[style] for style in ("fluent-3d", "fluent-color", "fluent-flat")}
"""The styles that the denoiser learns, with their words: three renderings of one set of drawings, so that what a name
looks like is nearly always the same. With all seven the error of x0 at sigma = 14 fell by 1 % in a hundred steps (1,750
to 1,914), on 85 pictures of these three by 2.4 % with these alone (2,047 to 2,250)."""

LEFT_OUT = ("People & Body", "Symbols", "Flags")
"""Groups that it does not learn: a third of the pictures, whose names a small model does not tell apart."""

PICTURES = DataConfig(
    size=128, include={"set": ("main",), "split": ("train",)}, exclude={"style": ("openmoji",)}, colours=ColourConfig()
)
CAPTIONS = CaptionConfig(styles=STYLES, always_styled=("fluent-high-contrast",), colour_share=0.25)


def drawings(**include: tuple[str, ...]) -> DataConfig:
    """What the denoiser learns from, or with other splits would: for what is trained on top of it."""
    include = {"set": ("main",), "style": tuple(DRAWN), **include}
    return DataConfig(size=128, include=include, exclude={"group": LEFT_OUT})


def emoji_128() -> TextToImageConfig:
    """Text to emoji, 128 x 128 pixels, the model inside the package; names of the split val are held out."""
    plain = emoji()
    return TextToImageConfig(
        data=PICTURES.model_copy(update={"scenes": SceneConfig(share=0.1)}),
        captions=CAPTIONS,
        autoencoder=AutoencoderStage(
            # Of factor 8 with eight channels (32, 64, 128, 128) one had 20.5 dB on its crops after 500 to 600 steps and
            # this 24.1 dB; the denoiser of as many parameters trains 1.7 times as long on these latents.
            network=AutoencoderConfig(
                base_channels=64, channel_mult=(1, 1, 2), num_res_blocks=1, latent_channels=4
            ),
            square_weight=2.0,
            crop=64,
            loop=LoopConfig(
                steps=2500, batch_size=16, learning_rate=6e-4, warmup=100, weight_decay=0.0,
                ema_decay=0.998, save_every=250, sample_every=1000,
            ),
        ),
        clip=plain.clip.model_copy(
            update={"image": dataclasses.replace(plain.clip.image, image_size=128, patch_size=16)}
        ),
        diffusion=DiffusionStage(
            network=UNetConfig(
                model_channels=64, channel_mult=(1, 2, 3, 4), num_res_blocks=1,
                attention_levels=(False, False, True, True), middle_attention=True, num_heads=None, head_channels=32,
                context_channels=192, linear_projection=True,
            ),
            # Around sigma = 4. After 1,500 steps around sigma = 1, another caption raised the error of x0 on 192
            # training pictures by 5 % at 1, by 26 % at 4 and by 39 % at 14: what a caption decides is decided in
            # that much noise, and with twice the cells a side in twice as much as at 64 pixels (Hoogeboom et al. 2023).
            levels=LevelConfig(name=LevelSampling.LOG_NORMAL, mean=1.4, deviation=1.1),
            include={"style": tuple(DRAWN)},
            exclude={"group": LEFT_OUT},
            preview_prompts=PROMPTS,
            guidance=3.0,
            # Averaged over about 500 steps: over 2,000 (a decay of 0.9995) the average was behind the weights that it
            # averages, 0.287 against 0.263 at sigma = 14 after 2,501 steps.
            loop=LoopConfig(
                steps=5200, batch_size=64, optimizer=Optimizer.MUON, learning_rate=2e-3, weight_decay=0.1,
                warmup=300, ema_decay=0.998, save_every=250, sample_every=500,
            ),
        ),
    )  # fmt: skip
