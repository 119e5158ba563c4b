"""Unconditional diffusion on an autoencoder's latents (Rombach et al. 2022), both trained on the same pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from langevin.checkpoints.original import write
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import RequestError
from langevin.images.grids import save_grid
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.unet import UNet, UNetConfig
from langevin.training.checkpointing import load_ema, steps_saved
from langevin.training.config import Config, LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.objectives.autoencoder import AutoencoderObjective, encode_all
from langevin.training.objectives.denoising import Denoising, DenoisingConfig, network_of, with_levels
from langevin.training.objectives.latents import Latents
from langevin.training.objectives.levels import make_levels
from langevin.training.objectives.previews import sampled
from langevin.training.randomness import normal, sample_generators
from langevin.training.system import System


class CodecStage(Config):
    network: AutoencoderConfig
    kl_weight: float = Field(1e-4, ge=0)
    """As of the text-to-image system's autoencoder."""
    edge_weight: float = Field(1.0, ge=0)
    loop: LoopConfig


class LatentStage(DenoisingConfig):
    network: UNetConfig
    """Without context and classes."""
    prediction: Prediction = Prediction.V
    loop: LoopConfig


class LatentSystem(System):
    """An autoencoder, then diffusion on its latents; nothing else is told to the model."""

    autoencoder: CodecStage
    diffusion: LatentStage

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {"diffusion": ("autoencoder",)}
    trial: ClassVar[tuple[str, ...]] = (
        "data.size=16", "autoencoder.network.base_channels=32", "autoencoder.network.channel_mult=[1, 1]",
        "diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1]",
        "diffusion.network.attention_levels=[false]",
    )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> LatentSystem:
        codec, network = self.autoencoder.network, self.diffusion.network
        for name, value, wanted in (
            ("autoencoder.network.in_channels", codec.in_channels, 3),
            ("diffusion.network.in_channels", network.in_channels, codec.latent_channels),
            ("diffusion.network.out_channels", network.out_channels, codec.latent_channels),
            ("diffusion.network.context_channels", network.context_channels, None),
            ("diffusion.network.num_classes", network.num_classes, None),
        ):
            if value != wanted:
                raise ValueError(f"{name} {value}: must be {wanted} here")
        if self.data.buckets is not None:
            raise ValueError("data.buckets: this system takes squares only")
        if self.data.size % codec.factor:
            raise ValueError(f"data.size {self.data.size} is not a multiple of the autoencoder's factor {codec.factor}")
        return self

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {"autoencoder": self.autoencoder.loop, "diffusion": self.diffusion.loop}

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        if stage == "autoencoder":
            part = self.autoencoder
            return AutoencoderObjective(
                AutoencoderKL(part.network),
                data,
                seed=self.seed,
                kl_weight=part.kl_weight,
                edge_weight=part.edge_weight,
                device=device,
            )
        if not steps_saved(run / "autoencoder" / "checkpoints"):
            raise RequestError(f"{run / 'autoencoder'} is not trained: train --stage autoencoder first")
        with torch.random.fork_rng(devices=[]):  # the codec's first weights are thrown away
            codec = self._codec(data, run)
        codec.network.to(device)
        return LatentObjective(
            self._model(UNet(self.diffusion.network)),
            codec,
            data,
            Latents(codec.network, data, device, self.cache, run),
            self.diffusion,
            seed=self.seed,
            device=device,
        )

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights of both in float32, single-file layout."""
        path = run / "model.safetensors"
        write(self.load_trained(data, run), path, overwrite=True)
        return path

    def load_trained(self, data: PictureSet, run: Path) -> ModelBundle:
        """The averaged weights of a run folder as a model. Raises CheckpointError where it holds none."""
        model = self._model(UNet(self.diffusion.network))
        levels = make_levels(self.diffusion.levels, model.schedule)
        load_ema(run / "diffusion" / "checkpoints", with_levels(model.network, levels))
        return ModelBundle(
            diffusion=model,
            autoencoder=self._codec(data, run),
            info=CheckpointInfo(
                name=run.name,
                task="unconditional",
                prediction=self.diffusion.prediction,
                prediction_from="training",
                default_size=(self.data.size, self.data.size),
                default_guidance=1.0,
            ),
        )

    def _model(self, network: UNet) -> DiffusionModel:
        return DiffusionModel(network, NoiseSchedule.scaled_linear(), self.diffusion.prediction)

    def _codec(self, data: PictureSet, run: Path) -> Autoencoder:
        network = AutoencoderKL(self.autoencoder.network)
        load_ema(run / "autoencoder" / "checkpoints", network)
        mean, deviation = encode_all(network, data, "cpu", data.some(min(512, len(data))))
        # Rombach et al. 2022, appendix G, to 5 digits.
        return Autoencoder(network, float(f"{1 / torch.sqrt(mean.var() + (deviation**2).mean()):.5g}"))


class LatentObjective:
    """The loss of `Denoising` on latents that are encoded once."""

    def __init__(
        self,
        model: DiffusionModel,
        codec: Autoencoder,
        data: PictureSet,
        latents: Latents,
        denoising: DenoisingConfig,
        *,
        seed: int,
        device: str,
    ) -> None:
        self.model = model
        self.codec = codec
        self.denoising = Denoising(model, denoising)
        self.module: nn.Module = with_levels(model.network, self.denoising.levels).to(device)
        self.data = data
        self.latents = latents
        self.seed = seed
        self.device = device

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "data": self.data.fingerprint, "scale": self.codec.scale_factor, **self.denoising.config.facts,
        }  # fmt: skip

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        streams = sample_generators(self.seed, "diffusion", step, samples)
        mean, deviation = self.latents.of(samples, self.seed)
        x0 = self.codec.scale_factor * (mean + deviation * normal(streams, mean.shape[1:]))
        noised = self.denoising.noised(x0.to(self.device), streams, step)
        return self.denoising.loss(noised, self.model.raw(noised.seen, noised.levels.sigma, Conditioning()))

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """64 pictures, seeds 0 to 63, 20 steps of DPM-Solver++(2M)."""
        nothing = Conditioning()
        model = replace(self.model, network=network_of(module))
        made = sampled(model, self.latents.shape, 64, nothing, nothing, 1.0)
        save_grid(path, self.codec.decode(made), columns=8)
