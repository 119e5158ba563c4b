"""A latent text-to-image system: autoencoder, CLIP or a text encoder from elsewhere, denoiser, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from langevin.checkpoints.clip_files import ClipConfig, write_clip
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
from langevin.training.objectives.adversarial import AdversarialConfig, with_discriminator
from langevin.training.objectives.autoencoder import AutoencoderObjective, encode_all
from langevin.training.objectives.beside import Beside
from langevin.training.objectives.clip import ClipObjective
from langevin.training.objectives.denoising import DenoisingConfig, with_levels
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.latents import Latents
from langevin.training.objectives.levels import make_levels
from langevin.training.objectives.perceptual import PerceptualConfig, load_image_tower, make_perceptual
from langevin.training.pretrained_text import PretrainedText, open_pretrained
from langevin.training.randomness import generator
from langevin.training.system import System


class AutoencoderStage(Config):
    network: AutoencoderConfig
    kl_weight: float = Field(1e-4, ge=0)
    """Weight of the Kullback-Leibler term, mean over latent elements, beside the mean absolute error of pixels."""
    edge_weight: float = Field(1.0, ge=0)
    """Weight of the mean absolute error of differences between neighbouring pixels."""
    square_weight: float = Field(0.0, ge=0)
    """Weight of the mean squared error of pixels, without which few steps do not bring the colours of flat areas."""
    perceptual: PerceptualConfig | None = None
    """A further term on the features of a frozen network. null: none."""
    adversarial: AdversarialConfig | None = None
    """A discriminator that trains beside the autoencoder. null: none."""
    crop: int | None = Field(None, ge=1)
    """Side in pixels of a random square of each picture, which is learned from in its place: less work a step, more
    places. null: whole pictures."""
    loop: LoopConfig

    @model_validator(mode="after")
    def _discriminates(self) -> AutoencoderStage:
        if self.adversarial is not None and self.adversarial.network.in_channels != self.network.in_channels:
            raise ValueError(
                f"adversarial.network.in_channels {self.adversarial.network.in_channels} is not network.in_channels "
                f"{self.network.in_channels}"
            )
        return self

    @property
    def needs_own_clip(self) -> bool:
        """Whether the run's own CLIP has to be trained first."""
        return self.perceptual is not None and self.perceptual.needs_own_clip

    def trained(self, run: Path) -> AutoencoderKL:
        """The averaged weights of the stage in a run folder. CheckpointError where there are none."""
        codec = AutoencoderKL(self.network)
        load_ema(run / "autoencoder" / "checkpoints", with_discriminator(codec, self.adversarial))
        return codec


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
    exclude: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Nor does it learn from samples that have one of the values in one of these fields."""
    preview_prompts: tuple[str, ...] = Field(min_length=1)
    guidance: float = Field(5.0, ge=1)
    """Of the previews; also the default of the finished model."""
    loop: LoopConfig


class HasClip(Protocol):
    """A system with a stage "clip"."""

    @property
    def seed(self) -> int: ...
    @property
    def captions(self) -> CaptionConfig: ...
    @property
    def clip(self) -> ClipStage: ...


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
        "autoencoder.network.base_channels=32", "autoencoder.network.channel_mult=[1, 1]", "autoencoder.crop=null",
        "clip.vocabulary=520", "clip.text.width=32", "clip.text.heads=2", "clip.text.layers=1",
        "clip.text.mlp_width=64", "clip.text.projection=16", "clip.image.image_size=32", "clip.image.width=32",
        "clip.image.heads=2", "clip.image.layers=1", "clip.image.mlp_width=64", "clip.image.projection=16",
        "diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1, 2]",
        "diffusion.network.attention_levels=[false, true]", "diffusion.network.head_channels=32",
        "diffusion.network.context_channels=32", "diffusion.include={}", "diffusion.exclude={}",
        'diffusion.preview_prompts=["a red circle", "a blue square"]',
    )  # fmt: skip

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        first = ("clip", "autoencoder") if self.autoencoder.needs_own_clip else ("autoencoder", "clip")
        stages = [stage for stage in first if stage != "clip" or self.text_encoder is None]
        return {stage: getattr(self, stage).loop for stage in (*stages, "diffusion")}

    def depends(self, stage: str) -> frozenset[str]:
        own = {"captions", "clip"} if stage == "autoencoder" and self.autoencoder.needs_own_clip else set()
        return super().depends(stage) | own

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the denoiser's noise levels."""
        return NoiseSchedule.scaled_linear()

    def beside(self, data: PictureSet, autoencoder: Autoencoder) -> Beside | None:
        """What the denoiser has in further input channels: nothing."""
        return None

    def channels_beside(self) -> tuple[int, int | None]:
        """How many further input channels the denoiser has, and its `num_classes`."""
        return 0, None

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
        if self.autoencoder.needs_own_clip and self.text_encoder is not None:
            raise ValueError(
                "autoencoder.perceptual.files: with a text_encoder no CLIP is trained, name another's file"
            )
        if self.autoencoder.adversarial is not None:
            least = self.autoencoder.adversarial.network.least_size
            if self.data.size < least:
                raise ValueError(f"data.size {self.data.size} is below the {least} that the discriminator takes")
        latent = self.autoencoder.network.latent_channels
        beside, classes = self.channels_beside()
        for name, value, other, wanted in (
            ("autoencoder.network.in_channels", self.autoencoder.network.in_channels, "an RGB picture's", 3),
            ("clip.image.in_channels", self.clip.image.in_channels, "an RGB picture's", 3),
            ("clip.image.image_size", self.clip.image.image_size, "data.size", self.data.size),
            ("clip.image.projection", self.clip.image.projection, "clip.text.projection", self.clip.text.projection),
            ("diffusion.network.in_channels", self.diffusion.network.in_channels, _words(beside), latent + beside),
            ("diffusion.network.out_channels", self.diffusion.network.out_channels, "latent_channels", latent),
            ("diffusion.network.num_classes", self.diffusion.network.num_classes, "what is needed here,", classes),
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
        part = self.diffusion
        denoised = data.only(part.include, part.exclude) if part.include or part.exclude else data
        if self.text_encoder is not None and stage != "diffusion":
            with torch.random.fork_rng(devices=[]):
                open_pretrained(self.text_encoder, self.diffusion.network.context_channels or 0)
        match stage:
            case "autoencoder":
                return autoencoder_objective(
                    self.autoencoder,
                    data,
                    seed=self.seed,
                    device=device,
                    own_tower=lambda: load_image_tower(run, self.clip.image, self.clip.loop.steps),
                )
            case "clip":
                tokenizer = train_tokenizer(self, data)
                network = Clip(ClipText(text_config(self, tokenizer)), ClipImage(self.clip.image))
                return ClipObjective(network, tokenizer, data, self.captions, seed=self.seed, device=device)
            case "diffusion":
                return _diffusion_objective(self, data, denoised, run, device)
            case _:
                raise ValueError(f"there is no stage {stage!r}")

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights in float16, single-file layout, architecture and vocabulary as
        metadata. Beside it `run/clip.safetensors`: both towers of CLIP, where they were trained, by which pictures are
        measured."""
        if "clip" in self.loops:
            save_clip(self, data, run)
        path = run / "model.safetensors"
        bundle = load_trained(self, data, run)
        bundle.extras = self.tables()
        write_original(checkpoint_of(bundle), path, dtype="F16", overwrite=True)
        return path

    def tables(self) -> dict[str, Tensor]:
        """What the finished file holds beside the networks: nothing."""
        return {}


def autoencoder_objective(
    part: AutoencoderStage,
    data: PictureSet,
    *,
    seed: int,
    device: str,
    own_tower: Callable[[], tuple[ClipImage, str]] | None = None,
) -> AutoencoderObjective:
    """The autoencoder stage of any system. own_tower: loads the run's own CLIP image tower, of a system that has one.

    Raises CheckpointError where what the perceptual term needs is not there.
    """
    network = AutoencoderKL(part.network)
    perceptual = None
    if part.perceptual is not None:
        size = part.crop or min(min(pictures.shape[-2:]) for pictures in data.parts)
        perceptual = make_perceptual(part.perceptual, own_tower, size, device)
    return AutoencoderObjective(
        network,
        data,
        seed=seed,
        kl_weight=part.kl_weight,
        edge_weight=part.edge_weight,
        square_weight=part.square_weight,
        crop=part.crop,
        device=device,
        perceptual=perceptual,
        adversarial=part.adversarial,
    )


def train_tokenizer(config: HasClip, data: PictureSet) -> Tokenizer:
    """The vocabulary of the captions: four of each record's rephrasings."""
    texts = [
        caption(record, config.captions, generator(config.seed, "vocabulary", i, k))
        for i, record in enumerate(data.records)
        for k in range(4)
    ]
    keywords = [" ".join(map(str, r.get("keywords") or ())) for r in data.records]
    return Tokenizer.train([*texts, *keywords], config.clip.vocabulary)


def save_clip(config: HasClip, data: PictureSet, run: Path) -> Path:
    """Write `run/clip.safetensors`, both towers with the averaged weights, from the finished stage "clip" of a run."""
    tokenizer = train_tokenizer(config, data)
    text = text_config(config, tokenizer)
    clip = Clip(ClipText(text), ClipImage(config.clip.image))
    load_ema(run / "clip" / "checkpoints", clip)
    path = run / "clip.safetensors"
    write_clip(clip, ClipConfig(text=text, image=config.clip.image), tokenizer, path)
    return path


def load_trained(config: TextToImageConfig, data: PictureSet, run: Path, *, new_denoiser: bool = False) -> ModelBundle:
    """The averaged weights of a run folder's stages as a model; its denoiser freshly made if `new_denoiser`."""
    codec = config.autoencoder.trained(run)
    text: PromptEncoder
    if config.text_encoder is not None:
        text = open_pretrained(config.text_encoder, config.diffusion.network.context_channels or 0)
    else:
        tokenizer = train_tokenizer(config, data)
        tower = ClipText(text_config(config, tokenizer))
        load_ema(run / "clip" / "checkpoints", Clip(tower, ClipImage(config.clip.image)))
        text = TextEncoder(tower, tokenizer)
    part = config.diffusion
    network = UNet(part.network)
    if not new_denoiser:
        load_ema(run / "diffusion" / "checkpoints", with_levels(network, make_levels(part.levels, config.schedule)))
    return ModelBundle(
        diffusion=DiffusionModel(network, config.schedule, part.prediction),
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


def _words(beside: int) -> str:
    return f"latent_channels and {beside} more," if beside else "latent_channels"


def text_config(config: HasClip, tokenizer: Tokenizer) -> ClipTextConfig:
    """The text tower for the vocabulary that was found."""
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
        beside=config.beside(denoised, codec),
    )
