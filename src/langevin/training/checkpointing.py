"""The state of a training run on disk: safetensors and JSON, whole or not at all."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.checkpoints.atomic import atomic_folder
from langevin.errors import CheckpointError
from langevin.training.ema import ExponentialMovingAverage

_FORMAT = 1
_UNFINISHED = re.compile(r"\.(\d{8,})\.[0-9a-f]{16}\.(tmp|old)")
"""Folders that never got their name, or have lost it: a process was killed while it wrote or removed them."""


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    keep: int,
) -> Path:
    """Write the state after `step` optimiser steps, then remove all but the newest `keep` checkpoints.

    `facts` (JSON) is what must not change when the run is resumed: the configuration, the data's fingerprint.
    Raises CheckpointError where it cannot be written; the checkpoints before it are kept then.
    """
    target = folder / f"{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target, overwrite=True) as temporary:
            save_file(_contiguous(module.state_dict()), temporary / "weights.safetensors")
            save_file(_contiguous(ema.module.state_dict()), temporary / "ema.safetensors")
            state = optimizer.state_dict()["state"]
            save_file(
                _contiguous({f"{i}.{k}": torch.as_tensor(v) for i, s in state.items() for k, v in s.items()}),
                temporary / "optimizer.safetensors",
            )
            manifest = {"format": _FORMAT, "step": step, "facts": facts}
            (temporary / "state.json").write_text(json.dumps(manifest, indent=1))
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise CheckpointError(f"{target} cannot be written ({error}); the checkpoints before it are kept") from error
    for old in steps_saved(folder)[:-keep]:
        # Renamed first: half of a checkpoint must not look like one.
        aside = folder / f".{old:08d}.{secrets.token_hex(8)}.tmp"
        (folder / f"{old:08d}").rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
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


def load(
    folder: Path,
    module: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> int:
    """Bring back the newest checkpoint of the folder and return its step.

    Raises CheckpointError where it is damaged, or was made with another configuration or other data than `facts` says.
    """
    step = steps_saved(folder)[-1]
    source = folder / f"{step:08d}"
    with _explained(source):
        manifest = json.loads((source / "state.json").read_text())
        if manifest["format"] != _FORMAT:
            raise CheckpointError(f"{source} has format {manifest['format']}, this version reads {_FORMAT}")
        for name, value in facts.items():
            if (difference := _difference(name, manifest["facts"].get(name), value)) is not None:
                where, before, now = difference
                raise CheckpointError(
                    f"{source} was made with {where} = {before!r}, not {now!r}: resume with the same options, "
                    "or give another --out"
                )
        module.load_state_dict(load_file(source / "weights.safetensors"))
        ema.module.load_state_dict(load_file(source / "ema.safetensors"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(source / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def load_ema(folder: Path, module: nn.Module) -> nn.Module:
    """Give `module` the averaged weights of the newest checkpoint.

    Raises CheckpointError where there is none, or it is damaged or of another architecture.
    """
    steps = steps_saved(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no checkpoint: train this stage first")
    source = folder / f"{steps[-1]:08d}"
    with _explained(source):
        module.load_state_dict(load_file(source / "ema.safetensors"))
    return module.requires_grad_(False).eval()


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


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().contiguous() for name, t in tensors.items()}
