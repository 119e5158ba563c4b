"""From one format to another, with proof: every tensor accounted for, and equal answers of the networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from langevin.checkpoints.atomic import atomic_folder, atomic_write
from langevin.checkpoints.checkpoint import Checkpoint, Stored
from langevin.checkpoints.controlnets import (
    ControlCheckpoint,
    is_control,
    is_control_folder,
    write_control_file,
    write_control_folder,
)
from langevin.checkpoints.diffusers_folder import is_folder_model
from langevin.checkpoints.folder_writer import folder_config, write_folder
from langevin.checkpoints.loader import (
    Source,
    build,
    locate,
    open_checkpoint,
    open_control,
    open_tensors,
    with_prediction,
)
from langevin.checkpoints.original import original_places, write_original
from langevin.checkpoints.recognise import CONTROL, TEXT
from langevin.checkpoints.tensorfile import FLOATS, dtype_name, in_words, torch_dtype
from langevin.checkpoints.transfer import Outgoing, same_bits
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError, RequestError
from langevin.model.bundle import ModelBundle

Format = Literal["ldm", "diffusers"]


class Conversion(NamedTuple):
    """What was done and found."""

    target: Path
    tensors: int
    """Compared one by one, bit for bit (after the change of type, if there was one)."""
    left_out: tuple[str, ...]
    """Names, as in a single file, of what was not written."""
    difference: float
    """Largest difference of any network's answer to the probe inputs; 0 unless the element type was changed."""
    prediction: Prediction | None
    """None for a ControlNet."""
    notices: tuple[str, ...]


def convert(
    source: str | Path,
    target: Path,
    to: Format,
    *,
    dtype: str | None = None,
    prediction: str | Prediction | None = None,
    config: str | Path | None = None,
    ema: bool | Literal["auto"] = "auto",
    allow_pickle: bool = False,
    extras: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
) -> Conversion:
    """Convert a model or a ControlNet. Nothing appears at `target` unless all comparisons succeed.

    source: anything that `load_bundle` takes, or a ControlNet's file or folder. to: "ldm" for the original single file,
    "diffusers" for the folder. dtype: safetensors name of the weights' new element type; None keeps what is stored.
    extras: whether what no network uses goes along. prediction, config, ema, allow_pickle, revision: as for
    `load_bundle`. Raises RequestError where target exists without `overwrite`, or is the source.
    """
    if dtype is not None and dtype not in FLOATS:
        raise RequestError(f"dtype {dtype}: expected one of {', '.join(FLOATS)}")
    if target.exists() and not overwrite:
        raise RequestError(f"{target}: exists already; choose another name or pass --force")
    if not target.parent.is_dir():
        raise RequestError(f"{target.parent}: no such folder; make it first")
    if to == "ldm" and target.suffix != ".safetensors":
        raise RequestError(f"{target}: a single file is written as safetensors; end its name in .safetensors")
    here = locate(source, revision=revision, ema=ema, allow_pickle=allow_pickle)
    if target.exists() and target.samefile(here.path):
        raise RequestError(f"{target}: source and target are the same")
    if _is_control(here.path, allow_pickle):
        return _convert_control(here.path, target, to, dtype, allow_pickle=allow_pickle, overwrite=overwrite)
    checkpoint = open_checkpoint(here.path, prediction=prediction, config=config, ema=ema, allow_pickle=allow_pickle)
    if checkpoint.config.prediction is None and to == "diffusers":
        # A folder must say it: ask the network.
        checkpoint = with_prediction(checkpoint, build(checkpoint, here, torch.float32).info.prediction)
    before = _answers(_bundle(checkpoint))
    with _place(target, to, overwrite) as temporary:
        if to == "ldm":
            write_original(checkpoint, temporary, dtype=dtype, extras=extras)
        else:
            write_folder(checkpoint, temporary, dtype=dtype, extras=extras, overwrite=True)
        written = open_checkpoint(temporary)
        tensors, left_out = _account(checkpoint, written, dtype, extras=extras, to=to)
        difference = _compare(before, _answers(_bundle(written)), exact=dtype is None, label=str(target))
    return Conversion(target, tensors, left_out, difference, checkpoint.config.prediction, checkpoint.notices)


@contextmanager
def _place(target: Path, to: Format, overwrite: bool) -> Iterator[Path]:
    """A temporary place for the result. Complaints about what lies there are made in the target's name."""
    place = atomic_write(target, overwrite=overwrite) if to == "ldm" else atomic_folder(target, overwrite=overwrite)
    with place as temporary:
        try:
            yield temporary
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(temporary), str(target))) from None


def _bundle(checkpoint: Checkpoint) -> ModelBundle:
    """For the networks' own answers, which do not depend on what they are taken to predict."""
    known = checkpoint if checkpoint.config.prediction is not None else with_prediction(checkpoint, Prediction.EPSILON)
    return build(known, Source(Path(checkpoint.label), "probe", checkpoint.label, None), torch.float32)


# -- every tensor -----------------------------------------------------------------------------------------------------


def _account(
    source: Checkpoint, written: Checkpoint, dtype: str | None, *, extras: bool, to: Format
) -> tuple[int, tuple[str, ...]]:
    """How many tensors agree, and what was left out. CheckpointError where anything else is missing, new or changed.

    Both sides are looked at as the same single file.
    """
    written = dataclasses.replace(written, layout=source.layout)
    before, after = _single(source, extras=extras), _single(written, extras=extras)
    left_out: set[str] = set() if extras else set(_single(source, extras=True)) - set(before)
    if not extras and to == "diffusers":
        lost = {name for name in before if name not in after and name.startswith((TEXT, CONTROL))}
        _check_lost(source, lost)
        left_out |= lost
        before = {name: stored for name, stored in before.items() if name not in lost}
    if different := sorted(set(before) ^ set(after)):
        raise CheckpointError(f"{written.label}: lost or invented {in_words(different)}; nothing was written")
    for name, stored in before.items():
        weight = isinstance(stored.file, Outgoing)  # what `dtype` applies to
        _check_same(name, stored, after[name], dtype if weight else None, written.label)
    return len(before), tuple(sorted(left_out))


def _single(checkpoint: Checkpoint, *, extras: bool) -> dict[str, Stored]:
    """A model as a single file's tensors: those of the networks as `Outgoing`."""
    laid = original_places(checkpoint, unet=checkpoint.layout.unet if extras else "plain")
    tensors = dict(checkpoint.extras) if extras else {}
    for part, places in laid.items():
        if part in checkpoint.parts:
            outgoing = Outgoing(checkpoint.parts[part], places)
            tensors |= {name: Stored(outgoing, name) for name in outgoing.tensors}
    return tensors


def _check_lost(checkpoint: Checkpoint, lost: set[str]) -> None:
    """Only what a folder has no place for may go: layers behind the one that is used, the projection, a ControlNet."""
    config = folder_config(checkpoint)
    assert config.text is not None
    used = original_places(dataclasses.replace(checkpoint, config=config)).get("text", {})
    if wrong := sorted(lost & {place.name for place in used.values()}):
        raise CheckpointError(f"{checkpoint.label}: conversion lost {in_words(wrong)}; nothing was written")


def _check_same(name: str, before: Stored, after: Stored, dtype: str | None, label: str) -> None:
    left, right = before.read(), after.read()
    # A folder keeps what it has no place for as it was.
    if dtype is not None and dtype_name(right.dtype) != dtype_name(left.dtype):
        left = left.to(torch_dtype(dtype))
    if not same_bits(left, right):
        raise CheckpointError(f"{label}: conversion changed {name}; nothing was written")


# -- equal answers ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _answers(bundle: ModelBundle) -> dict[str, Tensor]:
    """What each network says to fixed inputs, float32."""
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    answers: dict[str, Tensor] = {}
    config: Any = bundle.diffusion.network.config
    context = None
    if bundle.text is not None:
        context = answers["text encoder"] = bundle.text.states(["a red apple on a table"])
    elif config.context_channels is not None:
        context = noise(1, 77, config.context_channels)
    z, t = noise(1, config.in_channels, 16, 8), torch.tensor([321.5])
    labels = None if config.num_classes is None else torch.tensor([min(20, config.num_classes - 1)])
    answers["U-Net"] = bundle.diffusion.network(z, t, context=context, labels=labels)
    if bundle.autoencoder is not None:
        codec = bundle.autoencoder
        answers["decoder"] = codec.decode(noise(1, codec.latent_channels, 4, 3))
        answers["encoder"] = codec.encode(noise(1, 3, 4 * codec.downsampling, 2 * codec.downsampling))
    return answers


def _compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, exact: bool, label: str) -> float:
    largest = 0.0
    for name, answer in before.items():
        if not torch.equal(answer.isfinite(), after[name].isfinite()):
            raise CheckpointError(f"{label}: after conversion the {name} gives infinite or undefined numbers")
        difference = float((answer - after[name]).nan_to_num().abs().max())
        if exact and not same_bits(answer, after[name]):
            raise CheckpointError(f"{label}: after conversion the {name} answers differently, by {difference:.3g}")
        largest = max(largest, difference)
    return largest


# -- ControlNets ------------------------------------------------------------------------------------------------------


def _is_control(source: Path, allow_pickle: bool) -> bool:
    if source.is_dir():
        return is_control_folder(source) and not is_folder_model(source)
    return is_control(open_tensors(source, allow_pickle=allow_pickle))


def _convert_control(
    source: Path, target: Path, to: Format, dtype: str | None, *, allow_pickle: bool, overwrite: bool
) -> Conversion:
    control = open_control(source, allow_pickle=allow_pickle)
    with _place(target, to, overwrite) as temporary:
        if to == "ldm":
            write_control_file(control, temporary, dtype=dtype)
        else:
            write_control_folder(control, temporary, dtype=dtype, overwrite=True)
        written = open_control(temporary)
        _check_control(control, written, dtype, str(target))
    return Conversion(target, len(control.part.places), (), 0.0, None, ())


def _check_control(before: ControlCheckpoint, after: ControlCheckpoint, dtype: str | None, label: str) -> None:
    """All tensors equal and the same architecture: then the answers are equal too."""
    wanted = dataclasses.replace(before.config, out_channels=after.config.out_channels, num_classes=None)
    if wanted != dataclasses.replace(after.config, num_classes=None) or before.hint_channels != after.hint_channels:
        raise CheckpointError(f"{label}: conversion changed the architecture; nothing was written")
    for name in before.part.places:
        left, right = before.part.read(name), after.part.read(name)
        left = left if dtype is None else left.to(torch_dtype(dtype))
        if not same_bits(left, right):
            raise CheckpointError(f"{label}: conversion changed {name}; nothing was written")
