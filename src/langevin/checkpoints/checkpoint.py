"""A checkpoint on disk that has been understood, whatever its format: what the loader and the converter work on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from langevin.checkpoints.config import ModelConfig
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.checkpoints.transfer import Part
from langevin.model.bundle import Family, FileLayout, SourceFile, Task, Weights
from langevin.model.text_transformers import EncoderRecord
from langevin.model.tokenizer import Tokenizer
from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.clip import ClipText
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNet, UNetConfig

TextNames = Literal["clip", "clip-short", "openclip"]
"""How a single file names the text encoder: `FileLayout.text`."""


class Stored(NamedTuple):
    """One tensor in a file."""

    file: TensorFile
    name: str

    @property
    def info(self) -> TensorInfo:
        return self.file.tensors[self.name]

    def read(self) -> Tensor:
        return self.file.read(self.name)


@dataclass(frozen=True, kw_only=True)
class FolderFile:
    """How one weight file of a diffusers folder was laid out."""

    name: str
    """Path inside the folder."""
    metadata: tuple[tuple[str, str], ...] = (("format", "pt"),)
    order: tuple[str, ...] | None = None
    """None: canonical."""
    names_of_2022: bool = False
    """The autoencoder's attention has the names of the first releases."""
    short_names: bool = False
    """The text encoder's names have no "text_model." in front."""
    position_ids: bool = False
    """The text encoder's table 0, 1, 2 ... stands there too."""


@dataclass(frozen=True, kw_only=True)
class FolderRecord:
    """What a single file remembers of the diffusers folder it was made from, so that it can be made again."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """The configuration files, verbatim, by path inside the folder."""
    weights: Mapping[str, FolderFile] = field(default_factory=dict)
    """By part: unet, vae, text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Where everything of a model lies."""

    label: str
    format: Literal["memory", "ldm", "diffusers"]
    config: ModelConfig
    """With prediction None where nothing says."""
    prediction_from: str
    """How the prediction type is known, in words."""
    parts: Mapping[str, Part]
    """unet, vae, text, control: those that there are."""
    extras: Mapping[str, Stored] = field(default_factory=dict)
    """What no network uses, by its name in a single file."""
    tokenizer: Tokenizer | None = None
    encoder: EncoderRecord | None = None
    """The text encoder, where it lies elsewhere."""
    weights: Weights = "plain"
    layout: FileLayout = field(default_factory=FileLayout)
    folder: FolderRecord | None = None
    notices: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every weight file on disk, once."""
        paths = dict.fromkeys(path for part in self.parts.values() for path in part.file.paths)
        return tuple(SourceFile(path, path.stat().st_size) for path in paths)

    @property
    def stored_dtype(self) -> str:
        return self.parts["unet"].stored_dtype


def meta_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """The networks of a configuration without memory for their weights: unet, and vae, text, control if there."""
    with torch.device("meta"), _WithoutInit():
        networks: dict[str, nn.Module] = {"unet": UNet(config.unet)}
        if config.autoencoder is not None:
            networks["vae"] = AutoencoderKL(config.autoencoder)
        if config.text is not None:
            networks["text"] = ClipText(config.text)
        if config.control is not None:
            networks["control"] = ControlNet(config.control, config.hint_channels)
    return networks


class _WithoutInit(TorchFunctionMode):
    """Leaves out the first values of weights: there are none, and on the meta device drawing them would import
    torch's compiler, which takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def names_of(network: nn.Module) -> Iterable[str]:
    return network.state_dict().keys()


def family_of(unet: UNetConfig) -> Family:
    """By the width of the context."""
    match unet.context_channels:
        case 768:
            return "sd1"
        case 1024:
            return "sd2"
        case _:
            return "custom"


def text_names_of(unet: UNetConfig) -> TextNames:
    """How single files of a family name the text encoder."""
    return "openclip" if family_of(unet) == "sd2" else "clip"


def task_of(config: ModelConfig) -> Task:
    """By what comes beside the latent: mask and masked latent, depth, or a picture with its noise level; without a
    context, by whether there are classes."""
    if config.unet.context_channels is None:
        return "unconditional" if config.unet.num_classes is None else "class-to-image"
    latent = config.autoencoder.latent_channels if config.autoencoder else config.unet.in_channels
    match config.unet.in_channels - latent:
        case 1:
            return "depth"
        case 3 if config.unet.num_classes is not None:
            return "upscaling"
        case beside if beside == latent + 1:
            return "inpainting"
        case _:
            return "text-to-image"
