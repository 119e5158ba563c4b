"""A latent system conditioned on class labels: autoencoder and denoiser, no text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from langevin.checkpoints.memory import checkpoint_of
from langevin.checkpoints.original import write_original
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.unet import UNet, UNetConfig
from langevin.training.checkpointing import load_ema
from langevin.training.config import LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.objectives.denoising import DenoisingConfig, with_levels
from langevin.training.objectives.labels import LabelDiffusion
from langevin.training.objectives.latents import Latents
from langevin.training.objectives.levels import make_levels
from langevin.training.objectives.pixels import class_names
from langevin.training.system import System
from langevin.training.text_to_image import AutoencoderStage, autoencoder_objective, latent_scale


class LabelStage(DenoisingConfig):
    network: UNetConfig
    """Without a context. `num_classes` is the number of labels, and 1 more with a label dropout."""
    prediction: Prediction = Prediction.V
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """How often the label is left out, for classifier-free guidance."""
    guidance: float = Field(2.0, ge=1)
    """Of the previews; also the default of the finished model. 1 is none."""
    loop: LoopConfig

    @model_validator(mode="after")
    def _fits(self) -> LabelStage:
        if self.classes < 1:
            raise ValueError(
                f"network.num_classes {self.network.num_classes}: give the number of labels, 1 more with label_dropout"
            )
        if self.network.context_channels is not None:
            raise ValueError(f"network.context_channels {self.network.context_channels}: labels are no text, null")
        if self.guidance != 1 and not self.label_dropout:
            raise ValueError(f"guidance {self.guidance} needs a label_dropout above 0: 1 is no guidance")
        return self

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return (self.network.num_classes or 0) - bool(self.label_dropout)


class ClassLatentsConfig(System):
    autoencoder: AutoencoderStage
    diffusion: LabelStage

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {"diffusion": ("autoencoder",)}
    free: ClassVar[frozenset[str]] = frozenset({"diffusion.guidance"})
    trial: ClassVar[tuple[str, ...]] = (
        "autoencoder.network.channel_mult=[1, 1]",
        "diffusion.network.model_channels=32",
        "diffusion.network.attention_levels=[false, false]",
    )

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {"autoencoder": self.autoencoder.loop, "diffusion": self.diffusion.loop}

    @model_validator(mode="after")
    def _fits(self) -> ClassLatentsConfig:
        codec, network = self.autoencoder.network, self.diffusion.network
        if self.data.size % codec.factor:
            raise ValueError(f"data.size {self.data.size} is not a multiple of the autoencoder's factor {codec.factor}")
        for name, value in (("in_channels", network.in_channels), ("out_channels", network.out_channels)):
            if value != codec.latent_channels:
                raise ValueError(f"diffusion.network.{name} {value} is not latent_channels {codec.latent_channels}")
        if self.autoencoder.needs_own_clip:
            raise ValueError(
                "autoencoder.perceptual.files: there is no clip stage here, name another run's clip.safetensors"
            )
        return self

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        match stage:
            case "autoencoder":
                return autoencoder_objective(self.autoencoder, data, seed=self.seed, device=device)
            case "diffusion":
                codec = self._codec(data, run)
                codec.network.to(device)
                part = self.diffusion
                return LabelDiffusion(
                    DiffusionModel(UNet(part.network), NoiseSchedule.scaled_linear(), part.prediction),
                    codec,
                    data,
                    Latents(codec.network, data, device, self.cache, run),
                    seed=self.seed,
                    classes=class_names(data, part.classes),
                    label_dropout=part.label_dropout,
                    denoising=part,
                    preview_guidance=part.guidance,
                    device=device,
                )
            case _:
                raise ValueError(f"there is no stage {stage!r}")

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights in float16, single-file layout, architecture as metadata."""
        part = self.diffusion
        codec = self._codec(data, run)
        network = UNet(part.network)
        schedule = NoiseSchedule.scaled_linear()
        load_ema(run / "diffusion" / "checkpoints", with_levels(network, make_levels(part.levels, schedule)))
        bundle = ModelBundle(
            diffusion=DiffusionModel(network, schedule, part.prediction),
            autoencoder=codec,
            classes=class_names(data, part.classes),
            info=CheckpointInfo(
                name=run.name,
                task="class-to-image",
                prediction=part.prediction,
                prediction_from="training",
                default_size=(self.data.size, self.data.size),
                default_steps=20,
                default_guidance=part.guidance,
            ),
        )
        path = run / "model.safetensors"
        write_original(checkpoint_of(bundle), path, dtype="F16", overwrite=True)
        return path

    def _codec(self, data: PictureSet, run: Path) -> Autoencoder:
        """RequestError where the stage is not finished."""
        if not (run / "autoencoder" / "checkpoints" / f"{self.autoencoder.loop.steps:08d}").is_dir():
            raise RequestError(f"{run / 'autoencoder'} is not finished: train --stage autoencoder first")
        with torch.random.fork_rng(devices=[]):  # the frozen part's first weights are thrown away
            network = self.autoencoder.trained(run)
        return Autoencoder(network, latent_scale(network, data))
