"""Text to emoji with an autoencoder that also has a perceptual and an adversarial term.

Command:   langevin train emoji-sharp --data FOLDER --out runs/emoji-sharp
Data:      as of the recipe emoji
Hardware:  a CPU with bfloat16, or one GPU (not tried)
Time:      about 7 h of one core: 26 min for CLIP and 54 for the autoencoder until its discriminator starts,
           reckoned from 123 and 12 samples/s beside other work (benchmarks/recipes.py), and the denoiser of `emoji`
Expected:  not measured at this length; docs/autoencoder-training.md compares the terms over a few hundred steps
"""

from __future__ import annotations

from langevin.networks.discriminator import DiscriminatorConfig
from langevin.training.objectives.adversarial import AdversarialConfig
from langevin.training.objectives.perceptual import PerceptualConfig
from langevin.training.recipes.emoji import emoji
from langevin.training.text_to_image import TextToImageConfig


def emoji_sharp() -> TextToImageConfig:
    """Text to emoji, the autoencoder sharpened by features of its own CLIP and by a discriminator."""
    plain = emoji()
    autoencoder = plain.autoencoder.model_copy(
        update={
            "perceptual": PerceptualConfig(weight=0.1),
            "adversarial": AdversarialConfig(
                network=DiscriminatorConfig(base_channels=32, layers=2), weight=0.1, start=1250
            ),
        }
    )
    return plain.model_copy(update={"autoencoder": autoencoder})
