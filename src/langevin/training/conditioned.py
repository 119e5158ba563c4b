"""A latent text-to-image system whose denoiser sees pictures too: inpainting, depth, classes, low resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from langevin.model.autoencoder import Autoencoder
from langevin.training.conditions import Condition, check_condition, further_channels, make_beside, needed_labels
from langevin.training.data import PictureSet
from langevin.training.objectives.beside import Beside
from langevin.training.text_to_image import TextToImageConfig


class ConditionedConfig(TextToImageConfig):
    """Text to image, conditioned on what stands in the denoiser's further input channels.

    The finished file has the layout of the published models of its kind: 9 input channels for inpainting, 5 for depth,
    7 for a low resolution, with four latent channels.
    """

    condition: Condition

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **TextToImageConfig.shared,
        "diffusion": (*TextToImageConfig.shared["diffusion"], "condition"),
    }

    @model_validator(mode="after")
    def _condition_fits(self) -> ConditionedConfig:
        if self.data.buckets is not None:
            raise ValueError("data.buckets: a model that is conditioned on pictures trains at one size, give null")
        check_condition(self.condition, self.data.size, self.autoencoder.network.latent_channels, self.schedule)
        return self

    def channels_beside(self) -> tuple[int, int | None]:
        latent = self.autoencoder.network.latent_channels
        return further_channels(self.condition, latent), needed_labels(self.condition, self.schedule)

    def beside(self, data: PictureSet, autoencoder: Autoencoder) -> Beside:
        grid = self.data.size // autoencoder.downsampling
        return make_beside(self.condition, data, autoencoder, grid, self.schedule, seed=self.seed)
