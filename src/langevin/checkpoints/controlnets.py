"""ControlNet files: the original layout (alone, bare, or inside a whole model) and diffusers' folder."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from langevin.checkpoints import diffusers_configs as configs
from langevin.checkpoints import hub, model_folders, places
from langevin.checkpoints.atomic import atomic_folder
from langevin.checkpoints.jsonfile import Fields
from langevin.checkpoints.recognise import CONTROL, Kind, recognise
from langevin.checkpoints.safetensors_file import write_safetensors
from langevin.checkpoints.shapes import Shape, UnknownArchitectureError, controlnet_shape
from langevin.checkpoints.sidecar import beside
from langevin.checkpoints.tensorfile import TensorFile, in_words
from langevin.checkpoints.transfer import WORDS, Outgoing, Part, fit
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.errors import CheckpointError
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNetConfig

_CONFIG = "config.json"
_STEM = "diffusion_pytorch_model"
_XL = "a ControlNet for Stable Diffusion XL; expected one for Stable Diffusion 1.x / 2.x"


@dataclass(frozen=True, eq=False)
class ControlCheckpoint:
    """Where a ControlNet's tensors lie."""

    label: str
    config: UNetConfig
    hint_channels: int
    part: Part
    pooled: bool = False
    """Whether its residuals are averaged over all places."""

    def network(self) -> ControlNet:
        """On the meta device."""
        with torch.device("meta"):
            return ControlNet(self.config, self.hint_channels, pooled=self.pooled)


def is_control_folder(path: Path) -> bool:
    return (path / _CONFIG).is_file()


def open_control_folder(path: Path, *, allow_pickle: bool = False, half: bool = False) -> ControlCheckpoint:
    """A diffusers ControlNet folder. CheckpointError where it is something else or incomplete."""
    file = open_weights(path, _STEM, variants(half=half, non_ema=False), allow_pickle=allow_pickle)
    return _in_folder(path, str(path), file)


def open_control_file(file: TensorFile, *, steered: UNetConfig | None = None) -> ControlCheckpoint:
    """An original ControlNet file: `control_model.*`, bare names, or beside a whole model. Also a diffusers weight file
    that was taken out of its folder with the config.json beside it.

    steered: the U-Net that it is for: that one's number of attention heads is taken where the width of the context does
    not tell it by convention. A YAML beside the file, as the original ones have it, says whether residuals are pooled.
    """
    contents = recognise(file.tensors)
    if contents.kind is Kind.CONTROLNET_DIFFUSERS:
        folder = file.paths[0].parent
        if is_control_folder(folder):
            return _in_folder(folder, file.label, file)
        raise CheckpointError(f"{file.label}: {contents.words}, without its {_CONFIG}: put that beside it")
    if "control" not in contents.parts:
        raise CheckpointError(f"{file.label}: {contents.words}; expected a ControlNet")
    if contents.unknown:
        hint = " (its weights are differences to a base model)" if "difference" in contents.unknown else ""
        raise CheckpointError(
            f"{file.label}: {len(contents.unknown)} tensors do not belong in a ControlNet file "
            f"({in_words(contents.unknown)}){hint}"
        )
    prefix, tensors = contents.prefixes["control"], contents.parts["control"]
    if "label_emb.0.0.weight" in tensors:
        raise CheckpointError(f"{file.label}: {_XL}")
    try:
        shape, hint_channels = controlnet_shape(tensors)
        config = UNetConfig(**_with_known_heads(shape, steered, file.label))
    except UnknownArchitectureError as error:
        raise CheckpointError(f"{file.label}: {error}; expected a ControlNet for Stable Diffusion 1.x / 2.x") from None
    except ValueError as error:
        raise CheckpointError(f"{file.label}: an impossible architecture: {error}") from None
    network = _on_meta(config, hint_channels)
    laid = places.identity(network.state_dict(), prefix)
    part = fit(WORDS["control"], network, file, laid, [prefix + name for name in tensors])
    sidecar = beside(file.paths[0]) if file.paths else None
    pooled = sidecar is not None and sidecar.pooled is True
    return ControlCheckpoint(file.label, config, hint_channels, part, pooled)


def _in_folder(folder: Path, label: str, file: TensorFile) -> ControlCheckpoint:
    fields = Fields.of(folder / _CONFIG)
    if fields.take("addition_embed_type", None) == "text_time":
        raise fields.error("addition_embed_type", _XL)
    config, hint_channels, pooled = configs.read_controlnet(fields)
    network = _on_meta(config, hint_channels)
    laid = places.diffusers_controlnet(network.state_dict(), config)
    part = fit(WORDS["control"], network, file, laid, file.tensors)
    return ControlCheckpoint(label, config, hint_channels, part, pooled)


def _with_known_heads(shape: Shape, steered: UNetConfig | None, label: str) -> Shape:
    if shape["num_heads"] is not None or shape["head_channels"] is not None:
        return shape
    if steered is not None:
        return shape | {"num_heads": steered.num_heads, "head_channels": steered.head_channels}
    raise CheckpointError(
        f"{label}: the number of attention heads cannot be told from the weights (context of "
        f"{shape['context_channels']} channels; 768 and 1024 are known); a diffusers folder states it"
    )


def _on_meta(config: UNetConfig, hint_channels: int) -> ControlNet:
    with torch.device("meta"):
        return ControlNet(config, hint_channels)


def write_control_file(
    control: ControlCheckpoint, path: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
) -> None:
    """Write the original layout: `control_model.*` alone. CheckpointError for one with pooled residuals, of
    which a file of this layout does not tell."""
    if control.pooled:
        raise CheckpointError(
            f"{control.label}: its residuals are pooled, which the original layout leaves to a file beside it: keep "
            "the diffusers folder"
        )
    outgoing = Outgoing(control.part, places.identity(control.part.places, CONTROL), dtype)
    write_safetensors(path, outgoing.tensors, outgoing.read, metadata=[("format", "pt")], overwrite=overwrite)


def write_control_folder(
    control: ControlCheckpoint, path: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
) -> None:
    """Write a diffusers folder."""
    outgoing = Outgoing(control.part, places.diffusers_controlnet(control.part.places, control.config), dtype)
    config = dataclasses.replace(control.config, num_classes=None)
    fields = configs.controlnet_json(config, control.hint_channels, pooled=control.pooled)
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    with atomic_folder(path, overwrite=overwrite) as temporary:
        (temporary / _CONFIG).write_text(text, encoding="utf-8")
        write_safetensors(
            temporary / f"{_STEM}.safetensors", outgoing.tensors, outgoing.read, metadata=[("format", "pt")]
        )


def fetch_control(source: str, *, revision: str | None, half: bool, allow_pickle: bool) -> Path:
    """The path of a ControlNet: on this machine, or from the Hub's cache after a download."""
    path = Path(source).expanduser()
    if model_folders.exists(path):
        return path
    if found := model_folders.find("controlnet", source):
        return found
    repository = hub.parse(source)
    if repository is None:
        raise CheckpointError(
            f"{source}: no such file or folder, {model_folders.missing('controlnet', source)}, and not a Hub id "
            "(owner/name)"
        )
    return hub.fetch(repository, revision=revision, kind="controlnet", half=half, allow_pickle=allow_pickle).path


def is_control(file: TensorFile) -> bool:
    """Whether a file holds a ControlNet and no whole model."""
    return recognise(file.tensors).kind is Kind.CONTROLNET
