"""A latent text-to-image system from nothing: autoencoder, CLIP, denoiser, one after the other."""

from __future__ import annotations

import dataclasses
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
from langevin.model.text import TextEncoder
from langevin.model.tokenizer import Tokenizer
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.clip import Clip, ClipImage, ClipImageConfig, ClipText, ClipTextConfig
from langevin.networks.unet import UNet, UNetConfig
from langevin.training.captions import CaptionConfig, caption
from langevin.training.checkpointing import load_ema
from langevin.training.config import Config, LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.objectives.autoencoder import AutoencoderObjective, encode_all
from langevin.training.objectives.clip import ClipObjective
from langevin.training.objectives.diffusion import DiffusionObjective, Weighting
from langevin.training.randomness import generator
from langevin.training.system import System


class AutoencoderStage(Config):
    network: AutoencoderConfig
    kl_weight: float = Field(1e-4, ge=0)
    """Weight of the Kullback-Leibler term, mean over latent elements, beside the mean absolute error of pixels."""
    edge_weight: float = Field(1.0, ge=0)
    """Weight of the mean absolute error of differences between neighbouring pixels."""
    loop: LoopConfig


class ClipStage(Config):
    vocabulary: int = Field(4096, ge=514)
    """Tokens of the vocabulary that is learned from the captions."""
    text: ClipTextConfig
    image: ClipImageConfig
    loop: LoopConfig


class DiffusionStage(Config):
    network: UNetConfig
    prediction: Prediction = Prediction.V
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """How often the caption is left empty, for classifier-free guidance."""
    weighting: Weighting = Weighting.SNR_PLUS_ONE
    """Of the noise levels in the loss."""
    include: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The denoiser learns only from samples that have one of the values in each of these fields of their records; the
    other stages learn from all."""
    preview_prompts: tuple[str, ...] = Field(min_length=1)
    guidance: float = Field(5.0, ge=1)
    """Of the previews; also the default of the finished model."""
    loop: LoopConfig


class TextToImageConfig(System):
    captions: CaptionConfig
    autoencoder: AutoencoderStage
    clip: ClipStage
    diffusion: DiffusionStage

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "clip": ("captions",),
        "diffusion": ("captions", "autoencoder", "clip"),
    }
    free: ClassVar[frozenset[str]] = frozenset({"diffusion.preview_prompts", "diffusion.guidance"})

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {"autoencoder": self.autoencoder.loop, "clip": self.clip.loop, "diffusion": self.diffusion.loop}

    @model_validator(mode="after")
    def _fits(self) -> TextToImageConfig:
        grid = 2 ** (len(self.autoencoder.network.channel_mult) - 1)
        if self.data.size % grid:
            raise ValueError(f"data.size {self.data.size} is not a multiple of the autoencoder's factor {grid}")
        if self.diffusion.network.context_channels != self.clip.text.width:
            raise ValueError(
                f"diffusion.network.context_channels {self.diffusion.network.context_channels} is not "
                f"clip.text.width {self.clip.text.width}"
            )
        latent = self.autoencoder.network.latent_channels
        for name, value, other, wanted in (
            ("autoencoder.network.in_channels", self.autoencoder.network.in_channels, "an RGB picture's", 3),
            ("clip.image.in_channels", self.clip.image.in_channels, "an RGB picture's", 3),
            ("clip.image.image_size", self.clip.image.image_size, "data.size", self.data.size),
            ("clip.image.projection", self.clip.image.projection, "clip.text.projection", self.clip.text.projection),
            ("diffusion.network.in_channels", self.diffusion.network.in_channels, "latent_channels", latent),
            ("diffusion.network.out_channels", self.diffusion.network.out_channels, "latent_channels", latent),
            ("diffusion.network.num_classes", self.diffusion.network.num_classes, "what captions need,", None),
        ):
            if value != wanted:
                raise ValueError(f"{name} {value} is not {other} {wanted}")
        if self.clip.text.projection is None:
            raise ValueError("clip.text.projection null: the towers need a common width")
        if self.clip.text.positions < 77:
            raise ValueError(f"clip.text.positions {self.clip.text.positions} is less than the 77 tokens of a caption")
        return self

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        # Asked for in every stage: a choice that leaves nothing is to be refused before the first, not after it.
        denoised = data.only(self.diffusion.include) if self.diffusion.include else data
        match stage:
            case "autoencoder":
                part = self.autoencoder
                return AutoencoderObjective(
                    AutoencoderKL(part.network),
                    data,
                    seed=self.seed,
                    kl_weight=part.kl_weight,
                    edge_weight=part.edge_weight,
                    device=device,
                )
            case "clip":
                tokenizer = train_tokenizer(self, data)
                network = Clip(ClipText(_text_config(self, tokenizer)), ClipImage(self.clip.image))
                return ClipObjective(network, tokenizer, data, self.captions, seed=self.seed, device=device)
            case "diffusion":
                return _diffusion_objective(self, data, denoised, run, device)
            case _:
                raise ValueError(f"there is no stage {stage!r}")

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights in float16, single-file layout, architecture and vocabulary as
        metadata."""
        path = run / "model.safetensors"
        write_original(checkpoint_of(load_trained(self, data, run)), path, dtype="F16", overwrite=True)
        return path


def train_tokenizer(config: TextToImageConfig, data: PictureSet) -> Tokenizer:
    """The vocabulary of the captions: four of each record's rephrasings."""
    texts = [
        caption(record, config.captions, generator(config.seed, "vocabulary", i, k))
        for i, record in enumerate(data.records)
        for k in range(4)
    ]
    keywords = [" ".join(map(str, r.get("keywords") or ())) for r in data.records]
    return Tokenizer.train([*texts, *keywords], config.clip.vocabulary)


def load_trained(config: TextToImageConfig, data: PictureSet, run: Path, *, new_denoiser: bool = False) -> ModelBundle:
    """The averaged weights of a run folder's stages as a model; its denoiser freshly made if `new_denoiser`."""
    codec = AutoencoderKL(config.autoencoder.network)
    load_ema(run / "autoencoder" / "checkpoints", codec)
    tokenizer = train_tokenizer(config, data)
    tower = ClipText(_text_config(config, tokenizer))
    clip = Clip(tower, ClipImage(config.clip.image))
    load_ema(run / "clip" / "checkpoints", clip)
    part = config.diffusion
    network = UNet(part.network)
    if not new_denoiser:
        load_ema(run / "diffusion" / "checkpoints", network)
    return ModelBundle(
        diffusion=DiffusionModel(network, NoiseSchedule.scaled_linear(), part.prediction),
        autoencoder=Autoencoder(codec, latent_scale(codec, data)),
        text=TextEncoder(tower, tokenizer),
        info=CheckpointInfo(
            name=run.name,
            prediction=part.prediction,
            prediction_from="training",
            default_size=(config.data.size, config.data.size),
            default_steps=20,
            default_guidance=part.guidance,
        ),
    )


def latent_scale(codec: AutoencoderKL, data: PictureSet) -> float:
    """1 / standard deviation of the latents of 512 pictures (Rombach et al. 2022, appendix G), to 5 digits."""
    every = max(1, len(data) // 512)
    some = PictureSet(data.pictures[::every], data.records[::every], data.fingerprint)
    mean, deviation = encode_all(codec, some, str(next(codec.parameters()).device))
    return float(f"{1 / torch.sqrt(mean.var() + (deviation**2).mean()):.5g}")


def _text_config(config: TextToImageConfig, tokenizer: Tokenizer) -> ClipTextConfig:
    return dataclasses.replace(config.clip.text, vocabulary=len(tokenizer), eos_token=tokenizer.eos)


def _diffusion_objective(
    config: TextToImageConfig, data: PictureSet, denoised: PictureSet, run: Path, device: str
) -> DiffusionObjective:
    for stage, loop in (("autoencoder", config.autoencoder.loop), ("clip", config.clip.loop)):
        if not (run / stage / "checkpoints" / f"{loop.steps:08d}").is_dir():
            raise RequestError(f"{run / stage} is not finished: train --stage {stage} first")
    with torch.random.fork_rng(devices=[]):  # the frozen parts' first weights are thrown away
        frozen = load_trained(config, data, run, new_denoiser=True)
    part = config.diffusion
    codec, text = frozen.autoencoder, frozen.text
    assert codec is not None and text is not None
    codec.network.to(device)
    text.network.to(device)
    latents = encode_all(codec.network, denoised, device)
    return DiffusionObjective(
        DiffusionModel(UNet(part.network), frozen.diffusion.schedule, part.prediction),
        codec,
        text,
        denoised,
        latents,
        config.captions,
        seed=config.seed,
        caption_dropout=part.caption_dropout,
        weighting=part.weighting,
        preview_prompts=part.preview_prompts,
        preview_guidance=part.guidance,
        device=device,
    )
