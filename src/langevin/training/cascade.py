"""A cascade in pixel space: a base model of small pictures and an upscaler on them (Ho et al. 2022; Saharia et al.
2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from langevin.checkpoints.config import ScheduleConfig
from langevin.checkpoints.memory import checkpoint_of
from langevin.checkpoints.original import write_original
from langevin.errors import RequestError
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.text import TextEncoder
from langevin.networks.clip import Clip, ClipImage, ClipText
from langevin.networks.unet import UNet
from langevin.training.captions import CaptionConfig
from langevin.training.checkpointing import load_ema
from langevin.training.config import LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.objectives.beside import LowResolution
from langevin.training.objectives.clip import ClipObjective
from langevin.training.objectives.denoising import with_levels
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.levels import make_levels
from langevin.training.objectives.pixel_space import PixelSpace
from langevin.training.system import System
from langevin.training.text_to_image import ClipStage, DiffusionStage, save_clip, text_config, train_tokenizer


class BaseStage(DiffusionStage):
    """The base: 3 input channels, no labels."""

    schedule: ScheduleConfig = ScheduleConfig(kind="cosine")


class UpscalerStage(BaseStage):
    """The upscaler: 3 input channels, and 3 more of the small picture; a label for each timestep."""

    largest_level: int = Field(999, ge=0)
    """The last timestep to which the small picture is noised in training; levels are drawn uniformly from 0. All of
    them, and how much noise is best is found in sampling, without training again (section 4.2)."""


class CascadeConfig(System):
    captions: CaptionConfig
    clip: ClipStage
    base: BaseStage
    upscaler: UpscalerStage
    small: int = Field(ge=8)
    """Width and height of the base's pictures: a divisor of data.size, which is that of the upscaler's."""

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "clip": ("captions",),
        "base": ("captions", "clip", "small"),
        "upscaler": ("captions", "clip", "small"),
    }
    free: ClassVar[frozenset[str]] = frozenset(
        f"{stage}.{field}" for stage in ("base", "upscaler") for field in ("preview_prompts", "guidance")
    )
    trial: ClassVar[tuple[str, ...]] = (
        "data.size=32", "small=16",
        "clip.vocabulary=520", "clip.text.width=32", "clip.text.heads=2", "clip.text.layers=1",
        "clip.text.mlp_width=64", "clip.text.projection=16", "clip.image.image_size=32", "clip.image.width=32",
        "clip.image.heads=2", "clip.image.layers=1", "clip.image.mlp_width=64", "clip.image.projection=16",
        *(
            f"{stage}.{setting}"
            for stage in ("base", "upscaler")
            for setting in (
                "network.model_channels=32", "network.channel_mult=[1, 2]", "network.attention_levels=[false, true]",
                "network.head_channels=32", "network.context_channels=32",
                'preview_prompts=["a red circle", ""]', "include={}",
            )
        ),
    )  # fmt: skip

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {"clip": self.clip.loop, "base": self.base.loop, "upscaler": self.upscaler.loop}

    @model_validator(mode="after")
    def _fits(self) -> CascadeConfig:
        if self.data.buckets is not None:
            raise ValueError("data.buckets: a cascade trains at one size, give null")
        if self.data.size % self.small or self.small == self.data.size:
            raise ValueError(f"small {self.small} is not a proper divisor of data.size {self.data.size}")
        levels = len(self.upscaler.schedule.make())
        if self.upscaler.largest_level >= levels:
            raise ValueError(f"upscaler.largest_level {self.upscaler.largest_level}: the schedule ends at {levels - 1}")
        base, upscaler, text = self.base.network, self.upscaler.network, self.clip.text
        for name, value, other, wanted in (
            ("base.network.in_channels", base.in_channels, "an RGB picture's", 3),
            ("upscaler.network.in_channels", upscaler.in_channels, "that of two RGB pictures,", 6),
            ("base.network.out_channels", base.out_channels, "an RGB picture's", 3),
            ("upscaler.network.out_channels", upscaler.out_channels, "an RGB picture's", 3),
            ("base.network.num_classes", base.num_classes, "what captions need,", None),
            ("upscaler.network.num_classes", upscaler.num_classes, "the number of noise levels,", levels),
            ("base.network.context_channels", base.context_channels, "clip.text.width", text.width),
            ("upscaler.network.context_channels", upscaler.context_channels, "clip.text.width", text.width),
            ("clip.image.image_size", self.clip.image.image_size, "data.size", self.data.size),
            ("clip.image.projection", self.clip.image.projection, "clip.text.projection", text.projection),
        ):
            if value != wanted:
                raise ValueError(f"{name} {value} is not {other} {wanted}")
        return self

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        match stage:
            case "clip":
                tokenizer = train_tokenizer(self, data)
                network = Clip(ClipText(text_config(self, tokenizer)), ClipImage(self.clip.image))
                return ClipObjective(network, tokenizer, data, self.captions, seed=self.seed, device=device)
            case "base":
                return self._denoising(self.base, self.small, data, run, device)
            case "upscaler":
                return self._denoising(self.upscaler, self.data.size, data, run, device)
            case _:
                raise ValueError(f"there is no stage {stage!r}")

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`, the base, and `run/upscaler.safetensors`: averaged weights in float16, single-file
        layout, each with the text tower; beside them `run/clip.safetensors`. Returns the base's path."""
        save_clip(self, data, run)
        text = self._text(data, run)
        path = run / "model.safetensors"
        for stage, part, size, target in (
            ("upscaler", self.upscaler, self.data.size, run / "upscaler.safetensors"),
            ("base", self.base, self.small, path),
        ):
            model = self._model(part)
            load_ema(run / stage / "checkpoints", with_levels(model.network, make_levels(part.levels, model.schedule)))
            bundle = ModelBundle(
                diffusion=model,
                text=text,
                info=CheckpointInfo(
                    name=f"{run.name}-{stage}",
                    task="upscaling" if stage == "upscaler" else "text-to-image",
                    prediction=part.prediction,
                    prediction_from="training",
                    default_size=(size, size),
                    default_steps=20,
                    default_guidance=part.guidance,
                ),
            )
            write_original(checkpoint_of(bundle), target, dtype="F16", overwrite=True)
        return path

    def _denoising(self, part: BaseStage, size: int, data: PictureSet, run: Path, device: str) -> DiffusionObjective:
        if not (run / "clip" / "checkpoints" / f"{self.clip.loop.steps:08d}").is_dir():
            raise RequestError(f"{run / 'clip'} is not finished: train --stage clip first")
        with torch.random.fork_rng(devices=[]):  # the frozen tower's first weights are thrown away
            text = self._text(data, run)
        text.network.to(device)
        model = self._model(part)
        data = data.only(part.include) if part.include else data
        space = PixelSpace(data, size)
        beside = None
        if isinstance(part, UpscalerStage):
            beside = LowResolution(data, self.seed, self.small, size, model.schedule, part.largest_level)
        return DiffusionObjective(
            model,
            space,
            text,
            data,
            space,
            self.captions,
            seed=self.seed,
            caption_dropout=part.caption_dropout,
            denoising=part,
            preview_prompts=part.preview_prompts,
            preview_guidance=part.guidance,
            device=device,
            beside=beside,
        )

    def _model(self, part: BaseStage) -> DiffusionModel:
        return DiffusionModel(UNet(part.network), part.schedule.make(), part.prediction)

    def _text(self, data: PictureSet, run: Path) -> TextEncoder:
        tokenizer = train_tokenizer(self, data)
        tower = ClipText(text_config(self, tokenizer))
        load_ema(run / "clip" / "checkpoints", Clip(tower, ClipImage(self.clip.image)))
        return TextEncoder(tower, tokenizer)
