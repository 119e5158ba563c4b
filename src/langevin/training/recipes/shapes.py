"""Text to captioned shapes at 32 x 32 pixels: small enough to train in an hour, and its captions can be verified.

Command:   langevin shapes data/shapes && langevin train shapes --data data/shapes --out runs/shapes
           langevin evaluate runs/shapes/model.safetensors --data data/shapes --include split=held-out
Data:      20,000 scenes that langevin makes itself; those with a held-out pair of shape and colour are not trained on
Hardware:  a CPU with bfloat16
Time:      56 min of one core of a Xeon with AMX (190, 500 and 105 samples/s); 2 h, reckoned from 83, 243 and 44
           samples/s, of a slower one with other work
Expected:  reconstructions at 43 dB PSNR; of held-out pairs 0.67 are drawn just as their caption says, of known pairs
           0.69, chance 0.02 (docs/evaluation.md). More steps were not tried
"""

from __future__ import annotations

from langevin.diffusion.prediction import Prediction
from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.clip import ClipImageConfig, ClipTextConfig
from langevin.networks.unet import UNetConfig
from langevin.training.captions import CaptionConfig
from langevin.training.config import LoopConfig, Optimizer
from langevin.training.data import DataConfig
from langevin.training.objectives.weighting import Weighting
from langevin.training.text_to_image import AutoencoderStage, ClipStage, DiffusionStage, TextToImageConfig

PROMPTS = (
    "a small red circle left of a blue square", "a large black cross", "two small yellow squares", "a red triangle",
    "a green circle", "a large blue square above a small red cross", "a yellow triangle", "two purple crosses",
)  # fmt: skip
"""The second half are of the held-out pairs."""


def shapes() -> TextToImageConfig:
    """Text to captioned shapes, 32 x 32 pixels; the held-out pairs of shape and colour are never shown."""
    return TextToImageConfig(
        data=DataConfig(size=32, include={"split": ("train",)}),
        # The captions are whole phrases with their articles.
        captions=CaptionConfig(article_share=0.0, keyword_share=0.0, style_share=0.0),
        autoencoder=AutoencoderStage(
            # With the usual 32 groups, one a channel, all shapes come out in one colour.
            network=AutoencoderConfig(
                base_channels=32, channel_mult=(1, 1), num_res_blocks=1, latent_channels=4, groups=8
            ),
            # Without the squares it was at 33 dB after 800 steps, and of real scenes 0.80 were right after it.
            square_weight=2.0,
            loop=LoopConfig(
                steps=2400, batch_size=32, learning_rate=1e-3, warmup=50, weight_decay=0.0,
                ema_decay=0.995, save_every=200, sample_every=200,
            ),
        ),
        clip=ClipStage(
            vocabulary=560,
            text=ClipTextConfig(
                vocabulary=560, width=128, layers=3, heads=2, mlp_width=512, activation="gelu", projection=128
            ),
            image=ClipImageConfig(
                image_size=32, patch_size=4, width=128, layers=3, heads=2, mlp_width=512,
                activation="gelu", projection=128,
            ),
            loop=LoopConfig(
                steps=1200, batch_size=128, learning_rate=1e-3, warmup=100, weight_decay=0.1,
                beta2=0.98, ema_decay=0.995, save_every=200, sample_every=1200,
            ),
        ),
        diffusion=DiffusionStage(
            network=UNetConfig(
                model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(False, True),
                middle_attention=True, num_heads=None, head_channels=32, context_channels=128, linear_projection=True,
            ),
            # Of 500 scenes with held-out pairs 0.51 were right after 2,000 steps of v with its own weights, 0.57 of v
            # with these, 0.59 of epsilon (docs/objectives.md); with AdamW (8e-4) in Muon's place, of v with its own
            # weights and 200 scenes, 0.41 (with Muon 0.51).
            prediction=Prediction.EPSILON,
            weighting=Weighting.SNR,
            guidance=3.0,
            preview_prompts=PROMPTS,
            loop=LoopConfig(
                steps=4000, batch_size=64, optimizer=Optimizer.MUON, learning_rate=2e-3, weight_decay=0.1,
                warmup=300, save_every=250, sample_every=1000,
            ),
        ),
    )  # fmt: skip
