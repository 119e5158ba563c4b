"""Diffusion on pixels, unconditional or by class: one network, one stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from langevin.checkpoints.config import ScheduleConfig
from langevin.checkpoints.original import write
from langevin.diffusion.prediction import Prediction
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.unet import UNet, UNetConfig
from langevin.training.checkpointing import load_ema
from langevin.training.config import LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.objectives.denoising import DenoisingConfig, with_levels
from langevin.training.objectives.levels import LevelSampling, make_levels
from langevin.training.objectives.pixels import PixelObjective, class_names
from langevin.training.objectives.weighting import Weighting
from langevin.training.system import System


class PixelStage(DenoisingConfig):
    network: UNetConfig
    """Without a context. 1 channel in for grey pictures, 3 for colours; as many out, twice that with a learned
    variance. `num_classes` null: unconditional; else the number of labels, and 1 more with a label dropout."""
    weighting: Weighting = Weighting.SNR
    schedule: ScheduleConfig = ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)
    prediction: Prediction = Prediction.EPSILON
    sigma_data: float = Field(0.5, gt=0)
    """Standard deviation of the pixels in [-1, 1]; only the prediction and the weighting `edm` read it."""
    learned_variance: bool = False
    """Half of the network's outputs say where the reverse variance lies between its bounds; trained by the variational
    bound, which the other half does not learn from (Nichol & Dhariwal 2021, section 3.1)."""
    variational: float = Field(0.001, gt=0)
    """Weight of the bound, bits per dimension summed over the timesteps, beside the loss; with a learned variance."""
    label_dropout: float = Field(0.0, ge=0, lt=1)
    """How often the label is left out, for classifier-free guidance."""
    guidance: float = Field(1.0, ge=0)
    """Of the previews; also the default of the finished model. 1 is none."""
    loop: LoopConfig

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, value: ScheduleConfig) -> ScheduleConfig:
        value.make()
        return value

    @model_validator(mode="after")
    def _fits(self) -> PixelStage:
        network = self.network
        if network.context_channels is not None:
            raise ValueError(f"network.context_channels {network.context_channels}: pixel models take no text, null")
        if network.in_channels not in (1, 3):
            raise ValueError(f"network.in_channels {network.in_channels}: 1 for grey pictures, 3 for colours")
        wanted = network.in_channels * (2 if self.learned_variance else 1)
        if network.out_channels != wanted:
            raise ValueError(
                f"network.out_channels {network.out_channels} must be {wanted}: in_channels"
                + (" twice, for the learned variance" if self.learned_variance else "")
            )
        if self.learned_variance and self.levels.name is LevelSampling.LOG_NORMAL:
            raise ValueError("learned_variance true needs timesteps, which levels.name log_normal has not: use uniform")
        if self.learned_variance and self.noise_offset:
            raise ValueError(f"noise_offset {self.noise_offset} with learned_variance: the bound is of plain noise")
        if self.prediction is Prediction.EPSILON and self.schedule.zero_terminal_snr:
            raise ValueError("prediction epsilon says nothing of the picture at the end of zero_terminal_snr: use v")
        if network.num_classes is None and self.label_dropout:
            raise ValueError(f"label_dropout {self.label_dropout}: network.num_classes null has no labels to leave out")
        if network.num_classes is not None and network.num_classes - bool(self.label_dropout) < 1:
            raise ValueError(f"network.num_classes {network.num_classes}: 1 of them is for no class")
        if self.guidance != 1 and not self.label_dropout:
            raise ValueError(f"guidance {self.guidance} needs a label_dropout above 0: 1 is no guidance")
        return self


class PixelDiffusion(System):
    diffusion: PixelStage

    free: ClassVar[frozenset[str]] = frozenset({"diffusion.guidance"})
    trial: ClassVar[tuple[str, ...]] = (
        "data.size=16", "diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1, 2]",
        "diffusion.network.attention_levels=[false, true]", "diffusion.network.num_res_blocks=1",
    )  # fmt: skip

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {"diffusion": self.diffusion.loop}

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        if stage not in self.loops:
            raise ValueError(f"there is no stage {stage!r}")
        part = self.diffusion
        return PixelObjective(
            self._model(UNet(part.network)),
            data,
            seed=self.seed,
            channels=part.network.in_channels,
            classes=self._classes(data),
            label_dropout=part.label_dropout,
            denoising=part,
            variational=part.variational if part.learned_variance else 0.0,
            preview_guidance=part.guidance,
            device=device,
        )

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: the averaged weights in float32, single-file layout, configuration and names of the
        classes as metadata."""
        path = run / "model.safetensors"
        write(self.load_trained(data, run), path, overwrite=True)
        return path

    def load_trained(self, data: PictureSet, run: Path) -> ModelBundle:
        """The averaged weights of a run folder as a model. Raises CheckpointError where it holds none."""
        part = self.diffusion
        model = self._model(UNet(part.network))
        load_ema(
            run / "diffusion" / "checkpoints", with_levels(model.network, make_levels(part.levels, model.schedule))
        )
        return ModelBundle(
            diffusion=model,
            classes=self._classes(data),
            info=CheckpointInfo(
                name=run.name,
                task="unconditional" if part.network.num_classes is None else "class-to-image",
                prediction=part.prediction,
                prediction_from="training",
                default_size=(self.data.size, self.data.size),
                default_guidance=part.guidance,
            ),
        )

    def _model(self, network: UNet) -> DiffusionModel:
        part = self.diffusion
        return DiffusionModel(network, part.schedule.make(), part.prediction, part.sigma_data, part.learned_variance)

    def _classes(self, data: PictureSet) -> tuple[str, ...]:
        count = self.diffusion.network.num_classes
        return () if count is None else class_names(data, count - bool(self.diffusion.label_dropout))
