"""A latent text-to-image system: autoencoder, CLIP or a text encoder from elsewhere, denoiser, one after the other."""

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
from langevin.model.text import PromptEncoder, TextEncoder
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
from langevin.training.objectives.denoising import DenoisingConfig, with_levels
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.latents import Latents
from langevin.training.objectives.levels import make_levels
from langevin.training.pretrained_text import PretrainedText, open_pretrained
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


class DiffusionStage(DenoisingConfig):
    network: UNetConfig
    prediction: Prediction = Prediction.V
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """How often the caption is left empty, for classifier-free guidance."""
    include: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The denoiser learns only from samples that have one of the values in each of these fields of their records; the
    other stages learn from all."""
    preview_prompts: tuple[str, ...] = Field(min_length=1)
    guidance: float = Field(5.0, ge=1)
    """Of the previews; also the default of the finished model."""
    loop: LoopConfig


class TextToImageConfig(System):
    captions: CaptionConfig
    text_encoder: PretrainedText | None = None
    """Whose states are the context. None: those of the CLIP stage's text tower; else there is no CLIP stage."""
    autoencoder: AutoencoderStage
    clip: ClipStage
    diffusion: DiffusionStage

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "clip": ("captions",),
        "diffusion": ("captions", "autoencoder", "clip", "text_encoder"),
    }
    free: ClassVar[frozenset[str]] = frozenset({"diffusion.preview_prompts", "diffusion.guidance"})
    trial: ClassVar[tuple[str, ...]] = (
        "data.size=32",
        "autoencoder.network.base_channels=32", "autoencoder.network.channel_mult=[1, 1]",
        "clip.vocabulary=520", "clip.text.width=32", "clip.text.heads=2", "clip.text.layers=1",
        "clip.text.mlp_width=64", "clip.text.projection=16", "clip.image.image_size=32", "clip.image.width=32",
        "clip.image.heads=2", "clip.image.layers=1", "clip.image.mlp_width=64", "clip.image.projection=16",
        "diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1, 2]",
        "diffusion.network.attention_levels=[false, true]", "diffusion.network.head_channels=32",
        "diffusion.network.context_channels=32", "diffusion.include={}",
        'diffusion.preview_prompts=["a red circle", "a blue square"]',
    )  # fmt: skip

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        loops = {"autoencoder": self.autoencoder.loop, "clip": self.clip.loop, "diffusion": self.diffusion.loop}
        return {name: loop for name, loop in loops.items() if name != "clip" or self.text_encoder is None}

    @model_validator(mode="after")
    def _fits(self) -> TextToImageConfig:
        factor = self.autoencoder.network.factor
        if self.data.size % factor:
            raise ValueError(f"data.size {self.data.size} is not a multiple of the autoencoder's factor {factor}")
        if self.data.buckets is not None and self.data.buckets.grid % factor:
            raise ValueError(
                f"data.buckets.grid {self.data.buckets.grid} is not a multiple of the autoencoder's factor {factor}"
            )
        if self.text_encoder is None and self.diffusion.network.context_channels != self.clip.text.width:
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
        # Asked for in every stage: what leaves nothing, or cannot be opened, is refused before the first, not after it.
        denoised = data.only(self.diffusion.include) if self.diffusion.include else data
        if self.text_encoder is not None and stage != "diffusion":
            with torch.random.fork_rng(devices=[]):
                open_pretrained(self.text_encoder, self.diffusion.network.context_channels or 0)
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
    text: PromptEncoder
    if config.text_encoder is not None:
        text = open_pretrained(config.text_encoder, config.diffusion.network.context_channels or 0)
    else:
        tokenizer = train_tokenizer(config, data)
        tower = ClipText(_text_config(config, tokenizer))
        load_ema(run / "clip" / "checkpoints", Clip(tower, ClipImage(config.clip.image)))
        text = TextEncoder(tower, tokenizer)
    part = config.diffusion
    network = UNet(part.network)
    schedule = NoiseSchedule.scaled_linear()
    if not new_denoiser:
        load_ema(run / "diffusion" / "checkpoints", with_levels(network, make_levels(part.levels, schedule)))
    return ModelBundle(
        diffusion=DiffusionModel(network, schedule, part.prediction),
        autoencoder=Autoencoder(codec, latent_scale(codec, data)),
        text=text,
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
    some = torch.arange(0, len(data), max(1, len(data) // 512))
    buckets = [some[data.bucket[some] == b] for b in data.bucket[some].unique()]
    encoded = [encode_all(codec, data, str(next(codec.parameters()).device), b) for b in buckets]
    mean, deviation = (torch.cat([part.flatten() for part in parts]) for parts in zip(*encoded, strict=True))
    return float(f"{1 / torch.sqrt(mean.var() + (deviation**2).mean()):.5g}")


def _text_config(config: TextToImageConfig, tokenizer: Tokenizer) -> ClipTextConfig:
    return dataclasses.replace(config.clip.text, vocabulary=len(tokenizer), eos_token=tokenizer.eos)


def _diffusion_objective(
    config: TextToImageConfig, data: PictureSet, denoised: PictureSet, run: Path, device: str
) -> DiffusionObjective:
    for stage, loop in config.loops.items():
        if stage != "diffusion" and not (run / stage / "checkpoints" / f"{loop.steps:08d}").is_dir():
            raise RequestError(f"{run / stage} is not finished: train --stage {stage} first")
    with torch.random.fork_rng(devices=[]):  # the frozen parts' first weights are thrown away
        frozen = load_trained(config, data, run, new_denoiser=True)
    part = config.diffusion
    codec, text = frozen.autoencoder, frozen.text
    assert codec is not None and text is not None
    codec.network.to(device)
    text.network.to(device)
    latents = Latents(codec.network, denoised, device, config.cache, run)
    return DiffusionObjective(
        DiffusionModel(UNet(part.network), frozen.diffusion.schedule, part.prediction),
        codec,
        text,
        denoised,
        latents,
        config.captions,
        seed=config.seed,
        caption_dropout=part.caption_dropout,
        denoising=part,
        preview_prompts=part.preview_prompts,
        preview_guidance=part.guidance,
        device=device,
    )
