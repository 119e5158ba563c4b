"""The state of a training run on disk: safetensors and JSON, whole or not at all."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.checkpoints.atomic import atomic_folder
from langevin.errors import CheckpointError
from langevin.training import distributed
from langevin.training.config import FREE, LoopConfig
from langevin.training.ema import ExponentialMovingAverage

_FORMAT = 1
_UNFINISHED = re.compile(r"\.(\d{8,})\.[0-9a-f]{16}\.(tmp|old)")
"""Folders that never got their name, or have lost it: a process was killed while it wrote or removed them."""
_UNSAID = {
    name: field.get_default(call_default_factory=True)
    for name, field in LoopConfig.model_fields.items()
    if not field.is_required() and name not in FREE
}
"""The loop's fields as they were before they existed."""


class State(NamedTuple):
    """All that a run carries from step to step. (Order and noise are functions of the step.)"""

    module: nn.Module
    averages: Mapping[str, ExponentialMovingAverage]
    """By name; the first is the one that `load_ema` takes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def save(folder: Path, step: int, state: State, facts: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` optimiser steps, then remove all but the newest `keep` checkpoints.

    `facts` (JSON) is what must not change when the run is resumed: the configuration, the data's fingerprint. Of
    several processes all have to call this, and the first writes. Raises CheckpointError where it cannot be written;
    the checkpoints before it are kept then.
    """
    target = folder / f"{step:08d}"
    optimizer = state.optimizer.state_dict()
    files: dict[str, Callable[[], dict[str, Tensor]]] = {
        "weights": state.module.state_dict,
        **{name: a.module.state_dict for name, a in state.averages.items()},
        "optimizer": lambda: {
            f"{i}.{k}": torch.as_tensor(v) for i, s in optimizer["state"].items() for k, v in s.items()
        },
    }
    if distributed.rank():
        for tensors in files.values():
            distributed.whole(tensors())
        return target
    manifest = {
        "format": _FORMAT,
        "step": step,
        "facts": facts,
        "averages": list(state.averages),
        "groups": [_numbers(group) for group in optimizer["param_groups"]],
        "scaler": state.scaler.state_dict(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target, overwrite=True) as temporary:
            for name, tensors in files.items():
                save_file(distributed.whole(tensors()), temporary / f"{name}.safetensors")
            (temporary / "state.json").write_text(json.dumps(manifest, indent=1))
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise CheckpointError(f"{target} cannot be written ({error}); the checkpoints before it are kept") from error
    try:
        for old in steps_saved(folder)[:-keep]:
            # Renamed first: half of a checkpoint must not look like one.
            aside = folder / f".{old:08d}.{secrets.token_hex(8)}.tmp"
            (folder / f"{old:08d}").rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{target} is written, but the checkpoints before it stay: {error}") from error
    return target


def steps_saved(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    named = (p for p in folder.iterdir() if re.fullmatch(r"[0-9]{8,}", p.name))
    return sorted(int(p.name) for p in named if (p / "state.json").is_file())


def clear_unfinished(folder: Path) -> None:
    """Remove the remains of saves that were killed. A state that was moved aside stays where nothing replaced it."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        match = _UNFINISHED.fullmatch(path.name)
        if match and (match[2] == "tmp" or (folder / match[1]).is_dir()):
            shutil.rmtree(path, ignore_errors=True)


def load(folder: Path, state: State, facts: dict[str, Any]) -> int:
    """Bring back the newest checkpoint of the folder and return its step.

    Raises CheckpointError where it is damaged, or was made with another configuration or other data than `facts` says.
    """
    step = steps_saved(folder)[-1]
    source = folder / f"{step:08d}"
    with _explained(source):
        manifest = _manifest(source)
        for name, value in facts.items():
            before = manifest["facts"].get(name)
            if name == "loop" and isinstance(before, dict):
                before = {**_UNSAID, **before}
            if (difference := _difference(name, before, value)) is not None:
                where, then, now = difference
                raise CheckpointError(
                    f"{source} was made with {where} = {then!r}, not {now!r}: resume with the same options, "
                    "or give another --out"
                )
        _put(source / "weights.safetensors", state.module)
        for name, average in state.averages.items():
            _put(source / f"{name}.safetensors", average.module)
        groups = state.optimizer.state_dict()["param_groups"]
        for group, numbers in zip(groups, manifest.get("groups", []), strict=False):
            group.update(numbers)
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(source / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = distributed.laid_out_like(value, parameters[int(index)])
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if state.scaler.is_enabled():
            state.scaler.load_state_dict(manifest["scaler"])
    return step


def load_ema(folder: Path, module: nn.Module, name: str | None = None) -> nn.Module:
    """Give `module` the averaged weights of the newest checkpoint: the first average, or the one called `name`.

    Raises CheckpointError where there is none, or it is damaged or of another architecture.
    """
    steps = steps_saved(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no checkpoint: train this stage first")
    source = folder / f"{steps[-1]:08d}"
    with _explained(source):
        names = _manifest(source).get("averages", ["ema"])
        if name is not None and name not in names:
            raise CheckpointError(f"{source} holds no average {name!r}: {', '.join(names)}")
        module.load_state_dict(load_file(source / f"{name or names[0]}.safetensors"))
    return module.requires_grad_(False).eval()


def _manifest(source: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((source / "state.json").read_text())
    if manifest["format"] != _FORMAT:
        raise CheckpointError(f"{source} has format {manifest['format']}, this version reads {_FORMAT}")
    return manifest


def _put(path: Path, module: nn.Module) -> None:
    now = module.state_dict()
    loaded = load_file(path)
    module.load_state_dict({n: distributed.laid_out_like(v, now[n]) if n in now else v for n, v in loaded.items()})


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    """What an optimiser counts for a group of parameters, beside its settings."""
    return {name: value for name, value in group.items() if isinstance(value, int | float)}


@contextmanager
def _explained(source: Path) -> Iterator[None]:
    """What goes wrong while a checkpoint is read, as one line with what to do."""
    try:
        yield
    except RuntimeError:  # torch lists every key and shape
        raise CheckpointError(
            f"{source} holds weights of another architecture: give the options that it was made with, or another --out"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        before = [s for s in steps_saved(source.parent) if s < int(source.name)]
        then = f"go on from step {before[-1]}" if before else "begin again"
        raise CheckpointError(
            f"{source} is damaged ({type(error).__name__}: {error}): remove that folder to {then}"
        ) from error


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first field, by its full name, in which two JSON values differ."""
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            found = _difference(f"{name}.{key}", before.get(key), now.get(key))
            if found is not None:
                return found
    return name, before, now
