"""T2I-Adapter files: the original layout, full and light, and diffusers' folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from langevin.checkpoints.jsonfile import Fields
from langevin.checkpoints.places import Place, Places, identity
from langevin.checkpoints.recognise import Kind, recognise
from langevin.checkpoints.shapes import UnknownArchitectureError, count, size
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.checkpoints.transfer import WORDS, Part, fit
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.errors import CheckpointError
from langevin.networks.t2i_adapter import CELL, T2IAdapter, T2IAdapterConfig

_CLASS = "T2IAdapter"
_CONFIG = "config.json"
_STEM = "diffusion_pytorch_model"
_KINDS = {"full_adapter": False, "light_adapter": True}
_LEVELS = 4
_XL = "a T2I-Adapter for Stable Diffusion XL; expected one for Stable Diffusion 1.x / 2.x"


@dataclass(frozen=True, eq=False)
class AdapterCheckpoint:
    """Where a T2I-Adapter's tensors lie."""

    label: str
    config: T2IAdapterConfig
    part: Part

    def network(self) -> T2IAdapter:
        """On the meta device."""
        return _on_meta(self.config)


def is_adapter_folder(path: Path) -> bool:
    """Whether a diffusers folder says that it holds a T2I-Adapter."""
    return (path / _CONFIG).is_file() and Fields.of(path / _CONFIG).take("_class_name", None) == _CLASS


def is_adapter(file: TensorFile) -> bool:
    return recognise(file.tensors).kind in (Kind.T2I_ADAPTER, Kind.T2I_ADAPTER_DIFFUSERS)


def open_adapter_folder(path: Path, *, allow_pickle: bool = False, half: bool = False) -> AdapterCheckpoint:
    """A diffusers T2I-Adapter folder. CheckpointError where it is something else, incomplete, or for SDXL."""
    config = _read(Fields.of(path / _CONFIG))
    file = open_weights(path, _STEM, variants(half=half, non_ema=False), allow_pickle=allow_pickle)
    return _fitted(file, config, diffusers_adapter)


def open_adapter_file(file: TensorFile) -> AdapterCheckpoint:
    """A T2I-Adapter in one file, in the original layout or with diffusers' names; its shapes tell the architecture."""
    contents = recognise(file.tensors)
    try:
        match contents.kind:
            case Kind.T2I_ADAPTER:
                return _fitted(file, _original_shape(file.tensors), original_adapter)
            case Kind.T2I_ADAPTER_DIFFUSERS:
                return _fitted(file, _diffusers_shape(file.tensors), diffusers_adapter)
    except UnknownArchitectureError as error:
        raise CheckpointError(f"{file.label}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{file.label}: an impossible architecture: {error}") from None
    raise CheckpointError(f"{file.label}: {contents.words}; expected a T2I-Adapter")


def original_adapter(names: Iterable[str], config: T2IAdapterConfig) -> Places:
    """Where the tensors lie in an original file: under our own names."""
    return identity(names)


def diffusers_adapter(names: Iterable[str], config: T2IAdapterConfig) -> Places:
    """Where the tensors lie in a diffusers file."""

    def renamed(name: str) -> str:
        if config.light:
            return re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name)
        if (found := re.fullmatch(r"body\.(\d+)\.(.+)", name)) is None:
            return name
        level, block = divmod(int(found[1]), config.num_res_blocks)
        return f"body.{level}.{found[2]}" if "in_conv" in name else f"body.{level}.resnets.{block}.{found[2]}"

    return {name: Place(f"adapter.{renamed(name)}") for name in names}


def _original_shape(tensors: Mapping[str, TensorInfo]) -> T2IAdapterConfig:
    blocks = count(tensors, r"body\.(\d+)\..+")
    if "conv_in.weight" not in tensors:
        widths = [size(tensors, f"body.{i}.out_conv.weight", 0) for i in range(blocks)]
        inner = count(tensors, r"body\.0\.body\.(\d+)\..+")
        return _config(size(tensors, "body.0.in_conv.weight", 1), widths, inner, light=True)
    # The blocks lie in one row. Two levels of one width cannot be told apart in it: all that are known have four.
    each, rest = divmod(blocks, _LEVELS)
    if rest:
        raise UnknownArchitectureError(
            f"a T2I-Adapter of {blocks} blocks; expected as many in each of {_LEVELS} levels"
        )
    widths = [size(tensors, f"body.{i * each}.block1.weight", 0) for i in range(_LEVELS)]
    return _config(size(tensors, "conv_in.weight", 1), widths, each, light=False)


def _diffusers_shape(tensors: Mapping[str, TensorInfo]) -> T2IAdapterConfig:
    levels = count(tensors, r"adapter\.body\.(\d+)\..+")
    blocks = count(tensors, r"adapter\.body\.0\.resnets\.(\d+)\..+")
    light = "adapter.conv_in.weight" not in tensors
    last = "out_conv.weight" if light else "resnets.0.block1.weight"
    widths = [size(tensors, f"adapter.body.{i}.{last}", 0) for i in range(levels)]
    first = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    return _config(size(tensors, first, 1), widths, blocks, light=light)


def _config(given: int, widths: list[int], blocks: int, *, light: bool) -> T2IAdapterConfig:
    """given: channels that the first convolution takes, those of a cell of the hint."""
    hint_channels, rest = divmod(given, CELL * CELL)
    if given in (1 * 16 * 16, 3 * 16 * 16):
        raise UnknownArchitectureError(_XL)
    if rest or not hint_channels:
        raise UnknownArchitectureError(f"a T2I-Adapter for {given} channels; expected {CELL}x{CELL} a channel of hint")
    return T2IAdapterConfig(hint_channels=hint_channels, channels=tuple(widths), num_res_blocks=blocks, light=light)


def _fitted(
    file: TensorFile, config: T2IAdapterConfig, laid: Callable[[Iterable[str], T2IAdapterConfig], Places]
) -> AdapterCheckpoint:
    network = _on_meta(config)
    places = laid(network.state_dict(), config)
    return AdapterCheckpoint(file.label, config, fit(WORDS["adapter"], network, file, places, file.tensors))


def _on_meta(config: T2IAdapterConfig) -> T2IAdapter:
    with torch.device("meta"):
        return T2IAdapter(config)


def _read(fields: Fields) -> T2IAdapterConfig:
    fields.require_class(_CLASS)
    kind = fields.get("adapter_type", str, "full_adapter")
    if kind == "full_adapter_xl":
        raise fields.error("adapter_type", _XL)
    light = fields.choose("adapter_type", kind, _KINDS)
    channels = fields.integers("channels")
    if fields.get("downscale_factor", int, CELL) != CELL:
        raise fields.error("downscale_factor", f"expected {CELL}, as for Stable Diffusion 1.x / 2.x")
    config = fields.made(
        T2IAdapterConfig,
        hint_channels=fields.get("in_channels", int, 3),
        # The light kind's configuration leaves the last level out, which is as wide as the one before.
        channels=(*channels, channels[-1]) if light else channels,
        num_res_blocks=fields.get("num_res_blocks", int, 2),
        light=light,
    )
    fields.finish({})
    return config
