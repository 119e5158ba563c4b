"""An autoencoder by itself: an original file, alone or with a whole model around it, or a diffusers folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from langevin.checkpoints import diffusers_configs as configs
from langevin.checkpoints import hub, model_folders, places
from langevin.checkpoints.config import CONFIG_KEY, ModelConfig
from langevin.checkpoints.jsonfile import Fields
from langevin.checkpoints.loader import open_tensors
from langevin.checkpoints.recognise import VAE, Kind, recognise
from langevin.checkpoints.shapes import UnknownArchitectureError, autoencoder_shape
from langevin.checkpoints.tensorfile import TensorFile
from langevin.checkpoints.transfer import WORDS, Part, fit, load_into
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.errors import CheckpointError
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import ModelBundle, SourceFile
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL

_CONFIG = "config.json"
_STEM = "diffusion_pytorch_model"
_NOT_USED = ("loss.", "model_ema.")
"""Remains of training."""


@dataclass(frozen=True, eq=False)
class AutoencoderCheckpoint:
    """Where an autoencoder's tensors lie."""

    label: str
    config: AutoencoderConfig
    scale_factor: float | None
    """None where the file does not say: that of the model that it is put into."""
    part: Part


def load_autoencoder(
    source: str | os.PathLike[str], bundle: ModelBundle, *, allow_pickle: bool = False, revision: str | None = None
) -> tuple[Autoencoder, SourceFile]:
    """The autoencoder of a file, a folder, a name in $LANGEVIN_MODELS or a Hub id, in a model's precision and on its
    device; and the file that its weights are in.

    Raises CheckpointError where it is something else, incomplete, or has other latents than the model's own.
    """
    own = bundle.autoencoder
    if own is None:
        raise CheckpointError(f"{bundle.info.name} is a model of pixels: it has no place for the autoencoder {source}")
    half = own.dtype.itemsize == 2
    path = _locate(os.fspath(source), revision=revision, half=half, allow_pickle=allow_pickle)
    found = open_autoencoder(path, allow_pickle=allow_pickle, half=half)
    theirs, ours = found.config, own.network.config
    if (theirs.latent_channels, theirs.factor) != (ours.latent_channels, ours.factor):
        raise CheckpointError(
            f"{found.label}: latents of {theirs.latent_channels} channels at 1/{theirs.factor} of the size; those of "
            f"{bundle.info.name} have {ours.latent_channels} at 1/{ours.factor}"
        )
    network = load_into(_on_meta(theirs), found.part, own.dtype, own.device)
    assert isinstance(network, AutoencoderKL)
    file = found.part.file.paths[0]
    scale = own.scale_factor if found.scale_factor is None else found.scale_factor
    return Autoencoder(network, scale), SourceFile(file, file.stat().st_size)


def open_autoencoder(path: Path, *, allow_pickle: bool = False, half: bool = False) -> AutoencoderCheckpoint:
    """Understand an autoencoder's file or folder; of a whole model the autoencoder is taken."""
    if path.is_dir():
        folder = path / "vae" if (path / "model_index.json").is_file() else path
        return _folder(
            folder, open_weights(folder, _STEM, variants(half=half, non_ema=False), allow_pickle=allow_pickle)
        )
    file = open_tensors(path, allow_pickle=allow_pickle)
    contents = recognise(file.tensors)
    match contents.kind:
        case Kind.VAE:
            return _original(file, "")
        case Kind.MODEL if "vae" in contents.parts:
            return _original(file, VAE)
        case Kind.VAE_DIFFUSERS if (path.parent / _CONFIG).is_file():
            return _folder(path.parent, file)
        case Kind.VAE_DIFFUSERS:
            raise CheckpointError(f"{path}: {contents.words} needs its {_CONFIG} beside it; there is none")
    raise CheckpointError(f"{path}: {contents.words}; expected an autoencoder (VAE)")


def _locate(source: str, *, revision: str | None, half: bool, allow_pickle: bool) -> Path:
    path = Path(source).expanduser()
    if model_folders.exists(path):
        return path
    if found := model_folders.find("vae", source):
        return found
    repository = hub.parse(source)
    if repository is None:
        raise CheckpointError(
            f"{source}: no such file or folder, {model_folders.missing('vae', source)}, and not a Hub id (owner/name)"
        )
    return hub.fetch(repository, revision=revision, kind="autoencoder", half=half, allow_pickle=allow_pickle).path


def _original(file: TensorFile, prefix: str) -> AutoencoderCheckpoint:
    tensors = {name.removeprefix(prefix): info for name, info in file.tensors.items() if name.startswith(prefix)}
    tensors = {name: info for name, info in tensors.items() if not name.startswith(_NOT_USED)}
    text = file.metadata.get(CONFIG_KEY)
    stated = None if text is None else ModelConfig.from_json(text, file.label).autoencoder
    try:
        config = AutoencoderConfig(**autoencoder_shape(tensors)) if stated is None else stated
    except UnknownArchitectureError as error:
        raise CheckpointError(f"{file.label}: {error}; expected an autoencoder of Stable Diffusion 1.x / 2.x") from None
    except ValueError as error:
        raise CheckpointError(f"{file.label}: an impossible architecture: {error}") from None
    network = _on_meta(config)
    laid = places.identity(network.state_dict(), prefix)
    part = fit(WORDS["vae"], network, file, laid, [prefix + name for name in tensors])
    return AutoencoderCheckpoint(file.label, config, None, part)


def _folder(folder: Path, file: TensorFile) -> AutoencoderCheckpoint:
    config, scale = configs.read_vae(Fields.of(folder / _CONFIG))
    network = _on_meta(config)
    of_2022 = any(".attentions.0.query." in name for name in file.tensors)
    laid = places.diffusers_vae(network.state_dict(), config, names_of_2022=of_2022)
    return AutoencoderCheckpoint(file.label, config, scale, fit(WORDS["vae"], network, file, laid, file.tensors))


def _on_meta(config: AutoencoderConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoencoderKL(config)
