"""ControlNets and T2I-Adapters for a model that is loaded: told apart, and held against it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import cast

from langevin.checkpoints.adapters import (
    AdapterCheckpoint,
    is_adapter,
    is_adapter_folder,
    open_adapter_file,
    open_adapter_folder,
)
from langevin.checkpoints.controlnets import ControlCheckpoint, fetch_control
from langevin.checkpoints.loader import open_control, open_tensors
from langevin.checkpoints.transfer import load_into
from langevin.errors import CheckpointError
from langevin.model.bundle import Addition, ModelBundle, SourceFile
from langevin.networks.controlnet import ControlNet
from langevin.networks.t2i_adapter import T2IAdapter
from langevin.networks.unet import UNetConfig

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
    file = opened.part.file.paths[0]
    addition = Addition(
        "controlnet" if isinstance(network, ControlNet) else "t2i-adapter", SourceFile(file, file.stat().st_size)
    )
    info = dataclasses.replace(bundle.info, additions=(*bundle.info.additions, addition))
    return dataclasses.replace(bundle, steering=(*bundle.steering, network), info=info)


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
