"""ControlNets, T2I-Adapters and IP-Adapters for a model that is loaded: told apart, and held against it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from langevin.checkpoints import hub, model_folders
from langevin.checkpoints.adapters import (
    AdapterCheckpoint,
    is_adapter,
    is_adapter_folder,
    open_adapter_file,
    open_adapter_folder,
)
from langevin.checkpoints.controlnets import ControlCheckpoint, fetch_control
from langevin.checkpoints.image_encoders import load_image_encoder
from langevin.checkpoints.ip_adapters import open_ip_adapter
from langevin.checkpoints.loader import open_control, open_tensors
from langevin.checkpoints.transfer import load_into
from langevin.errors import CheckpointError
from langevin.model.bundle import Addition, ModelBundle, SourceFile
from langevin.model.image_prompt import ImagePrompter
from langevin.networks.controlnet import ControlNet
from langevin.networks.ip_adapter import IPAdapter, IPAdapterConfig, attention_widths
from langevin.networks.t2i_adapter import T2IAdapter
from langevin.networks.unet import UNet, UNetConfig

_ENCODER = "image_encoder"
"""The folder of the image encoder beside the adapters, as their authors publish them."""
_FAMILIES = {768: " (Stable Diffusion 1.x)", 1024: " (Stable Diffusion 2.x)"}


def add_steering(
    bundle: ModelBundle,
    source: str | os.PathLike[str],
    *,
    allow_pickle: bool = False,
    revision: str | None = None,
) -> ModelBundle:
    """The model with a ControlNet or a T2I-Adapter beside it, in its precision and on its device: the next hint of
    `langevin.tasks.control` acts through it.

    source: a file, a diffusers folder or a Hub id. CheckpointError where it is something else, damaged, or for another
    model.
    """
    half = bundle.diffusion.dtype.itemsize == 2
    path = fetch_control(os.fspath(source), revision=revision, half=half, allow_pickle=allow_pickle)
    unet = cast(UNetConfig, bundle.diffusion.network.config)
    opened = _open(path, unet, allow_pickle=allow_pickle, half=half)
    label = Path(source).name
    if isinstance(opened, ControlCheckpoint):
        check_fits(opened.config, bundle, label)
        # Where the U-Net's logits overflow float16 its copy's do too.
        upcast = opened.config.upcast_attention or unet.upcast_attention
        opened = dataclasses.replace(opened, config=dataclasses.replace(opened.config, upcast_attention=upcast))
    else:
        check_adapter_fits(opened.config.channels, bundle, label)
    network = load_into(opened.network(), opened.part, bundle.diffusion.dtype, bundle.diffusion.device)
    assert isinstance(network, ControlNet | T2IAdapter)
    kind: Literal["controlnet", "t2i-adapter"] = "controlnet" if isinstance(network, ControlNet) else "t2i-adapter"
    addition = Addition(kind, _source(opened.part.file.paths), folder=label if path.is_dir() else None)
    return dataclasses.replace(_noted(bundle, addition), steering=(*bundle.steering, network))


def add_ip_adapter(
    bundle: ModelBundle,
    source: str | os.PathLike[str],
    encoder: str | os.PathLike[str] | None = None,
    *,
    allow_pickle: bool = False,
) -> ModelBundle:
    """The model with an IP-Adapter beside it, in its precision and on its device: the next picture prompt of
    `langevin.tasks.control` acts through it.

    source: a file, a name or a Hub id of a file. encoder: CLIP's image tower, that the adapter was trained with, as
    `load_image_encoder` takes it; None is the folder `image_encoder` beside the adapter, as it was published.
    CheckpointError where one of them is something else, damaged, or for another model.
    """
    path = _fetch_ip_adapter(os.fspath(source), allow_pickle=allow_pickle)
    opened = open_ip_adapter(open_tensors(path, allow_pickle=allow_pickle))
    label, dtype, device = Path(source).name, bundle.diffusion.dtype, bundle.diffusion.device
    check_ip_adapter_fits(opened.config, bundle, label)
    if encoder is None and not (path.parent / _ENCODER).is_dir():
        raise CheckpointError(f"{label}: no folder {_ENCODER} beside it: give its image encoder (--image-encoder)")
    place = path.parent / _ENCODER if encoder is None else model_folders.resolve("image-encoder", encoder)
    seeing = load_image_encoder(place, dtype, device, allow_pickle=allow_pickle)
    seeing = next((p.encoder for p in bundle.image_prompters if p.encoder.files == seeing.files), seeing)
    tower, taken = seeing.tower.config, opened.config.image_channels
    if (given := tower.projection if opened.config.kind == "linear" else tower.width) != taken:
        what = "no vectors" if given is None else f"{given} channels"
        raise CheckpointError(
            f"{label} takes pictures as {taken} channels, the image encoder {place.name} gives {what}: give the one "
            "that it was trained with"
        )
    network = load_into(opened.network(), opened.part, dtype, device)
    assert isinstance(network, IPAdapter)
    folder = place.name if place.is_dir() else None
    noted = _noted(bundle, Addition("image-encoder", _source(seeing.files), folder=folder))
    noted = _noted(noted, Addition("ip-adapter", _source(opened.part.file.paths)))
    return dataclasses.replace(noted, image_prompters=(*bundle.image_prompters, ImagePrompter(network, seeing)))


def check_fits(control: UNetConfig, bundle: ModelBundle, label: str) -> None:
    """CheckpointError unless a ControlNet of this architecture steers the model."""
    unet = cast(UNetConfig, bundle.diffusion.network.config)
    name = bundle.info.name
    if control.context_channels != unet.context_channels:
        raise CheckpointError(
            f"{label} steers models with {_context(control)}; {name} has {_context(unet)}: give one made for it"
        )
    if _levels(control) != _levels(unet):
        raise CheckpointError(
            f"{label} steers U-Nets of {_levels_in_words(control)}; that of {name} has {_levels_in_words(unet)}: give "
            "one made for it"
        )
    latent = unet.out_channels if bundle.autoencoder is None else bundle.autoencoder.latent_channels
    if control.in_channels not in (latent, unet.in_channels):
        raise CheckpointError(
            f"{label} sees {control.in_channels} channels; {name} has latents of {latent}: give one made for it"
        )


def check_adapter_fits(channels: tuple[int, ...], bundle: ModelBundle, label: str) -> None:
    """CheckpointError unless a T2I-Adapter with levels of these channels steers the model."""
    unet = cast(UNetConfig, bundle.diffusion.network.config)
    if channels != (widths := _widths(unet)):
        raise CheckpointError(
            f"{label} steers U-Nets with levels of {'/'.join(map(str, channels))} channels; {bundle.info.name} has "
            f"{'/'.join(map(str, widths))}: give one made for it"
        )


def check_ip_adapter_fits(config: IPAdapterConfig, bundle: ModelBundle, label: str) -> None:
    """CheckpointError unless an IP-Adapter of this architecture tells the model of pictures."""
    network, name = bundle.diffusion.network, bundle.info.name
    unet = cast(UNetConfig, network.config)
    if unet.context_channels != config.context_channels:
        raise CheckpointError(
            f"{label} is for models with a context of {config.context_channels} channels"
            f"{_FAMILIES.get(config.context_channels, '')}; {name} has {_context(unet)}: give one made for it"
        )
    widths = attention_widths(cast(UNet, network))
    if config.layers != widths or any(unet.cross_attention_only_levels):
        raise CheckpointError(
            f"{label} is for U-Nets with attention of {'/'.join(map(str, config.layers))} channels; {name} has "
            f"{'/'.join(map(str, widths))}: give one made for it"
        )


def _noted(bundle: ModelBundle, addition: Addition) -> ModelBundle:
    info = dataclasses.replace(bundle.info, additions=(*bundle.info.additions, addition))
    return dataclasses.replace(bundle, info=info)


def _source(paths: Sequence[Path]) -> SourceFile:
    return SourceFile(paths[0], paths[0].stat().st_size)


def _fetch_ip_adapter(source: str, *, allow_pickle: bool) -> Path:
    path = Path(source).expanduser()
    if model_folders.exists(path):
        if path.is_dir():
            raise CheckpointError(f"{path}: a folder; expected an IP-Adapter's file")
        return path
    repository = hub.parse(source)
    if repository is None or repository.file is None or model_folders.find("ip-adapter", source):
        return model_folders.resolve("ip-adapter", source)
    return hub.fetch(repository, allow_pickle=allow_pickle).path


def _open(path: Path, unet: UNetConfig, *, allow_pickle: bool, half: bool) -> ControlCheckpoint | AdapterCheckpoint:
    if path.is_dir():
        if is_adapter_folder(path):
            return open_adapter_folder(path, allow_pickle=allow_pickle, half=half)
    elif is_adapter(file := open_tensors(path, allow_pickle=allow_pickle)):
        return open_adapter_file(file)
    return open_control(path, steered=unet, allow_pickle=allow_pickle, half=half)


def _widths(config: UNetConfig) -> tuple[int, ...]:
    return tuple(config.model_channels * mult for mult in config.channel_mult)


def _levels(config: UNetConfig) -> tuple[object, ...]:
    """All that the residuals' shapes, and so the fit, depend on."""
    return _widths(config), config.num_res_blocks


def _levels_in_words(config: UNetConfig) -> str:
    return f"{config.num_res_blocks} blocks in levels of {'/'.join(map(str, _widths(config)))} channels"


def _context(config: UNetConfig) -> str:
    width = config.context_channels
    return "no context" if width is None else f"a context of {width} channels{_FAMILIES.get(width, '')}"
