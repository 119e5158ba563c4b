"""Models made of models, tensor by tensor: two or three merged, and LoRAs baked into one.

What is read stays memory-mapped. Each tensor is computed in float32 and written in the precision that it has in the
first model, one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, assert_never

from torch import Tensor

from langevin.checkpoints.checkpoint import Checkpoint, family_of, meta_networks
from langevin.checkpoints.loader import locate, open_checkpoint
from langevin.checkpoints.lora import AdapterParts, read_lora
from langevin.checkpoints.lora_defaults import lora_defaults
from langevin.checkpoints.model_folders import resolve
from langevin.checkpoints.original import write_original
from langevin.checkpoints.places import identity
from langevin.checkpoints.recognise import EMA
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.checkpoints.transfer import WORDS, Part
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError, RequestError
from langevin.model.bundle import CheckpointInfo, ModelBundle, SourceFile
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.text import TextEncoder
from langevin.networks.clip import ClipText
from langevin.networks.lora import adapted, parameter_name

MERGE_KEY = "langevin.merge"
"""Metadata: what was merged, as JSON."""

PARTS = ("unet", "vae", "text")

_ENTRY = "input_blocks.0.0.weight"
"""The layer of the U-Net whose columns are its input channels."""

Ema = bool | Literal["auto"]

Change = Callable[[str, Tensor], Tensor]
"""From one of a part's names and its tensor in float32 to what stands there instead, in float32."""


class How(StrEnum):
    """What becomes of the weights a, b and c of three models."""

    WEIGHTED_SUM = "weighted-sum"
    """(1 - ratio) a + ratio b."""
    ADD_DIFFERENCE = "add-difference"
    """a + ratio (b - c): what b learned beyond c, put into a."""


class Merged(NamedTuple):
    """What was done."""

    target: Path
    tensors: Mapping[str, int]
    """How many tensors were computed, by part; the others are the first model's, bit for bit."""
    notices: tuple[str, ...]


def merge_models(
    sources: Sequence[str | Path],
    target: Path,
    *,
    how: How = How.WEIGHTED_SUM,
    ratio: float = 0.5,
    parts: Iterable[str] = PARTS,
    ema: Ema = "auto",
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Merged:
    """Merge two models, or for add-difference three, into one file laid out as the first.

    sources: as `load_bundle` takes them, and ema, allow_pickle as there. parts: which networks are merged, those of
    them that the models have; the others are the first model's. Where the first model's U-Net has further input
    channels (an inpainting model), these stay as they are, so that the difference of two ordinary models can be put
    into it.

    Raises CheckpointError with the first tensor that differs where the architectures do; RequestError for a ratio or a
    number of models that does not fit, and for a target that is there already without `overwrite`.
    """
    wanted = 2 if how is How.WEIGHTED_SUM else 3
    if len(sources) != wanted:
        raise RequestError(f"{how} takes {wanted} models, {len(sources)} were given")
    if not math.isfinite(ratio) or (how is How.WEIGHTED_SUM and not 0 <= ratio <= 1):
        raise RequestError(f"ratio {ratio:g} is out of bounds: give 0 (all of the first model) to 1")
    check_target(target, overwrite)
    first, *others = (open_model(source, ema=ema, allow_pickle=allow_pickle) for source in sources)
    chosen = [part for part in PARTS if part in first.parts and part in set(parts)]
    notices = [notice for other in others for notice in check_alike(first, other, chosen)]

    def change(part: str) -> Change:
        files = [other.parts[part] for other in others]

        def merged(name: str, a: Tensor) -> Tensor:
            b, *c = (file.read(name).float() for file in files)
            inside = a[:, : b.shape[1]] if a.shape != b.shape else a  # without the further input channels
            match how:
                case How.WEIGHTED_SUM:
                    value = (1 - ratio) * inside + ratio * b
                case How.ADD_DIFFERENCE:
                    value = inside + ratio * (b - c[0])
                case _:
                    assert_never(how)
            if value.shape == a.shape:
                return value
            whole = a.clone()
            whole[:, : b.shape[1]] = value
            return whole

        return merged

    done = {part: change(part) for part in chosen}
    facts = {
        "how": str(how),
        "ratio": ratio,
        "parts": chosen,
        "models": [files_in_words(c.files) for c in (first, *others)],
    }
    _write(first, done, facts, target, overwrite=overwrite)
    return Merged(target, {part: len(first.parts[part].places) for part in chosen}, (*first.notices, *notices))


def merge_loras(
    source: str | Path,
    loras: Sequence[tuple[str | Path, float]],
    target: Path,
    *,
    ema: Ema = "auto",
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Merged:
    """Bake adapter files into a model, each at a strength, in order: the file does what the model with them does.

    Raises CheckpointError for a file that does not fit, RequestError as `merge_models`.
    """
    for path, strength in loras:
        if not math.isfinite(strength):
            raise RequestError(f"the strength {strength} of {path} is not a finite number: 1 is as it was trained")
    check_target(target, overwrite)
    model = open_model(source, ema=ema, allow_pickle=allow_pickle)
    bundle = on_meta(model, Path(model.label).stem)
    files = [(resolve("lora", path), strength) for path, strength in loras]
    adapters: list[tuple[AdapterParts, float]] = [(read_lora(path, bundle), strength) for path, strength in files]
    names = {
        part: {parameter_name(key) for given, _ in adapters for key in given.get(part, ())} for part in model.parts
    }

    def change(part: str) -> Change:
        def baked(name: str, value: Tensor) -> Tensor:
            for given, strength in adapters:
                if adapter := given.get(part, {}).get(name.removesuffix(".weight")):
                    value = adapted(value, adapter, strength)
            return value

        return baked

    done = {part: change(part) for part, changed in names.items() if changed}
    facts = {
        "how": "lora",
        "models": [files_in_words(model.files)],
        "loras": [
            {**files_in_words([SourceFile(path, path.stat().st_size)])[0], "strength": strength}
            for path, strength in files
        ],
    }
    for path, strength in files:
        if strength > 0 and (stated := lora_defaults(path)):
            defaults = dataclasses.replace(model.config.defaults, **dataclasses.asdict(stated))
            model = dataclasses.replace(model, config=dataclasses.replace(model.config, defaults=defaults))
    _write(model, done, facts, target, only=names, overwrite=overwrite)
    return Merged(target, {part: len(changed) for part, changed in names.items() if changed}, model.notices)


def open_model(source: str | Path, *, ema: Ema, allow_pickle: bool) -> Checkpoint:
    found = locate(source, ema=ema, allow_pickle=allow_pickle)
    return open_checkpoint(found.path, ema=ema, allow_pickle=allow_pickle)


def check_alike(
    first: Checkpoint, other: Checkpoint, parts: Collection[str], *, further_channels: bool = True
) -> list[str]:
    """Notices of what is passed over. CheckpointError, with the first tensor that differs, for other architectures;
    and where the two do not predict the same. further_channels: whether the first may have more input channels."""
    pair = f"{first.label} and {other.label}"
    notices = []
    for part in parts:
        ours = first.parts[part].shapes
        theirs = other.parts[part].shapes if part in other.parts else {}
        for name in (*ours, *(name for name in theirs if name not in ours)):
            a, b = ours.get(name), theirs.get(name)
            if a == b:
                continue
            if further_channels and a and b and name == _ENTRY and a[1] > b[1] and (a[0], *a[2:]) == (b[0], *b[2:]):
                notices.append(f"{a[1] - b[1]} further input channels of {first.label} stay as they are")
                continue
            here, there = ("not there" if shape is None else str(list(shape)) for shape in (a, b))
            raise CheckpointError(
                f"{pair} are of different architectures: {WORDS[part]}: {name} is {here} in the first, {there} in the "
                "second"
            )
    predictions = {model.config.prediction for model in (first, other)} - {None}
    if "unet" in parts and len(predictions) > 1:
        raise CheckpointError(f"{pair} do not predict the same: {' and '.join(sorted(map(str, predictions)))}")
    return notices


def check_target(target: Path, overwrite: bool) -> None:
    """RequestError where no safetensors file can be made."""
    if target.suffix != ".safetensors":
        raise RequestError(f"{target}: it is written as safetensors; end its name in .safetensors")
    if target.exists() and not overwrite:
        raise RequestError(f"{target}: exists already; choose another name or pass --force")
    if not target.parent.is_dir():
        raise RequestError(f"{target.parent}: no such folder; make it first")


def on_meta(checkpoint: Checkpoint, name: str) -> ModelBundle:
    """The model of a checkpoint without its weights: names and shapes are all there."""
    config, networks = checkpoint.config, meta_networks(checkpoint.config)
    prediction = config.prediction or Prediction.EPSILON
    text = networks.get("text")
    tower = None
    if isinstance(text, ClipText) and checkpoint.tokenizer is not None:
        tower = TextEncoder(text, checkpoint.tokenizer, config.text_layer)
    return ModelBundle(
        diffusion=DiffusionModel(networks["unet"], config.schedule.make(), prediction),
        text=tower,
        info=CheckpointInfo(name=name, family=family_of(config.unet), prediction=prediction),
    )


class _Changed(TensorFile):
    """A part's tensors under our names, changed when they are read."""

    metadata: Mapping[str, str] = {}  # it never has any

    def __init__(self, part: Part, change: Change, only: Iterable[str] | None) -> None:
        self._part, self._change = part, change
        self._names = set(part.places) if only is None else set(only)
        self.tensors = {name: TensorInfo(part.dtype(name), tuple(part.shapes[name])) for name in part.places}

    @property
    def label(self) -> str:
        return self._part.file.label

    @property
    def paths(self) -> Sequence[Path]:
        return self._part.file.paths

    def read(self, name: str) -> Tensor:
        value = self._part.read(name)
        if name not in self._names:
            return value
        changed = self._change(name, value.float()).to(value.dtype)
        if not changed.isfinite().all() and value.isfinite().all():
            raise CheckpointError(f"{self.label}: {name} is no longer finite in {self.tensors[name].dtype}")
        return changed


def _write(
    model: Checkpoint,
    changes: Mapping[str, Change],
    facts: Mapping[str, Any],
    target: Path,
    *,
    only: Mapping[str, Iterable[str]] | None = None,
    overwrite: bool,
) -> None:
    """A file laid out as the model's own, with some parts changed. Of two sets of U-Net weights the used one stays."""
    parts = dict(model.parts)
    for part, change in changes.items():
        old = model.parts[part]
        file = _Changed(old, change, None if only is None else only[part])
        parts[part] = Part(file, identity(old.places), old.shapes)
    metadata = [(name, value) for name, value in model.layout.metadata if name != MERGE_KEY]
    layout = dataclasses.replace(
        model.layout,
        unet="plain",
        complete=False,
        metadata=(*metadata, (MERGE_KEY, json.dumps(facts, ensure_ascii=False))),
    )
    changed = dataclasses.replace(
        model,
        parts=parts,
        extras={name: stored for name, stored in model.extras.items() if not name.startswith(EMA)},
        weights="plain",
        layout=layout,
        folder=None,
    )
    write_original(changed, target, overwrite=overwrite)


def files_in_words(files: Iterable[SourceFile]) -> list[dict[str, str]]:
    """For the metadata: a file may be named, not a place."""
    return [{"name": file.path.name, "sha256": file.sha256} for file in files]
