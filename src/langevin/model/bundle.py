"""What a checkpoint becomes: all its networks together, and what is known about where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from langevin.diffusion.prediction import Prediction
from langevin.model.autoencoder import Autoencoder
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.image_prompt import ImagePrompter
from langevin.model.text import PromptEncoder
from langevin.networks.controlnet import ControlNet
from langevin.networks.t2i_adapter import T2IAdapter

Task = Literal["text-to-image", "class-to-image", "unconditional", "inpainting", "depth", "upscaling"]
Family = Literal["sd1", "sd2", "custom"]
Weights = Literal["plain", "ema"]


@dataclass(frozen=True)
class SourceFile:
    """One file that weights were read from."""

    path: Path
    size: int
    """Bytes, when it was opened."""

    @cached_property
    def sha256(self) -> str:
        """Of the whole file, 64 hexadecimal digits; read on first use (about a second for each gigabyte)."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """How the single file was laid out that a model came from, so that the same bytes can be written again."""

    order: tuple[str, ...] | None = None
    """Names of its tensors in their order on disk. None: the canonical order of the safetensors library."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Its metadata, in order."""
    unet: Weights = "plain"
    """Under which names the U-Net's weights lay: `model.diffusion_model.*` or `model_ema.*`."""
    text: Literal["clip", "clip-short", "openclip"] = "clip"
    """How the text tower was named: Hugging Face's way, the same without "text_model.", or OpenCLIP's way."""
    complete: bool = False
    """The file told all of this model by itself: nothing was given from beside it, and nothing changed since."""


@dataclass(frozen=True)
class Addition:
    """A file that was put into a loaded model."""

    kind: Literal["lora", "embedding", "vae", "controlnet", "t2i-adapter", "image-encoder", "ip-adapter"]
    file: SourceFile
    strength: float = 1.0
    """Of a LoRA."""
    word: str | None = None
    """Of an embedding: what it is called in a prompt."""
    folder: str | None = None
    """What it was given as, by its own name, where that was a folder: all their files are called the same."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What is known about a model beside its weights. The defaults are those of a model made in this process."""

    name: str = "unnamed"
    """Short name: the file's stem, the folder's or the repository's name."""
    source: str = "memory"
    """What it was loaded from: a path, or `hub:owner/name`."""
    format: Literal["memory", "ldm", "diffusers"] = "memory"
    """Original single file, diffusers folder, or neither."""
    family: Family = "custom"
    """sd1: a context of 768 channels from CLIP ViT-L/14; sd2: 1024 from OpenCLIP ViT-H/14; custom: any other."""
    task: Task = "text-to-image"
    """What the U-Net is told, and what its input channels are for."""
    prediction: Prediction
    """What the U-Net predicts."""
    prediction_from: str = "given"
    """How that is known, in words."""
    weights: Weights = "plain"
    """Which of the U-Net's weights are in use: the trained ones or their exponential moving average."""
    stored_dtype: str = "F32"
    """Precision of the U-Net's weights on disk, as safetensors names it; several are joined by "+"."""
    files: tuple[SourceFile, ...] = ()
    """Every file that weights were read from."""
    revision: str | None = None
    """The commit, 40 hexadecimal digits, of a model from the Hub."""
    default_size: tuple[int, int] = (512, 512)
    """Width and height in pixels that the model was trained for."""
    default_steps: int = 30
    default_guidance: float = 7.5
    default_sampler: str | None = None
    """What a model is made for that was distilled for one sampler; None: any will do."""
    notices: tuple[str, ...] = ()
    """What was guessed, ignored or left out in loading, a line each."""
    layout: FileLayout | None = None
    """For a model from a single file."""
    additions: tuple[Addition, ...] = ()
    """Files that were put into it since, or beside it for one run, in order."""


@dataclass(kw_only=True, eq=False)
class ModelBundle:
    """A whole model, ready to run."""

    diffusion: DiffusionModel
    autoencoder: Autoencoder | None = None
    """None for a model of pixels."""
    text: PromptEncoder | None = None
    """None for a model without context."""
    controlnet: ControlNet | None = None
    """The ControlNet that a file held beside the whole model."""
    steering: tuple[ControlNet | T2IAdapter, ...] = ()
    """Networks that were put beside the model to steer it by hints, the first hint's first; `info.additions` names
    their files in the same order."""
    image_prompters: tuple[ImagePrompter, ...] = ()
    """IP-Adapters that were put beside the model, the first picture's first; `info.additions` names the file of each
    after that of its image encoder."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the U-Net knows, by label. One embedding more than these is that of no class."""
    info: CheckpointInfo
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of a single file that no network here uses (schedule tables, the other set of U-Net weights, a depth
    model), under their names in the file, kept so that it can be written again. Memory-mapped: unread, they cost no
    memory."""

    def networks(self) -> dict[str, nn.Module]:
        """The networks that there are, by part."""
        parts: dict[str, nn.Module | None] = {
            "unet": self.diffusion.network,
            "vae": self.autoencoder.network if self.autoencoder else None,
            "text": self.text.network if self.text else None,
            "control": self.controlnet,
        }
        return {name: network for name, network in parts.items() if network is not None}

    def to(self, device: torch.device | str) -> ModelBundle:
        """Move every network, in place. Returns the bundle itself."""
        prompters = [network for one in self.image_prompters for network in (one.adapter, one.encoder.tower)]
        for network in (*self.networks().values(), *self.steering, *prompters):
            network.to(device)
        return self
