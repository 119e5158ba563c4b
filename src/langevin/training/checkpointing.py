"""The state of a training run on disk: safetensors and JSON, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.checkpoints.atomic import atomic_folder
from langevin.errors import CheckpointError
from langevin.training.ema import ExponentialMovingAverage

_FORMAT = 1


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
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{step:08d}"
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
    for old in steps_saved(folder)[:-keep]:
        shutil.rmtree(folder / f"{old:08d}")
    return target


def steps_saved(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "state.json").is_file())


def load(
    folder: Path,
    module: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> int:
    """Bring back the newest checkpoint of the folder and return its step.

    Raises CheckpointError where it was made with another configuration or other data than `facts` says.
    """
    step = steps_saved(folder)[-1]
    source = folder / f"{step:08d}"
    manifest = json.loads((source / "state.json").read_text())
    if manifest["format"] != _FORMAT:
        raise CheckpointError(f"{source} has format {manifest['format']}, this version reads {_FORMAT}")
    for name, value in facts.items():
        if manifest["facts"].get(name) != value:
            raise CheckpointError(
                f"{source} was made with {name} = {manifest['facts'].get(name)!r}, not {value!r}: resume with the same "
                "options, or give another --out"
            )
    module.load_state_dict(load_file(source / "weights.safetensors"))
    ema.module.load_state_dict(load_file(source / "ema.safetensors"))
    flat = load_file(source / "optimizer.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def load_ema(folder: Path, module: nn.Module) -> nn.Module:
    """Give `module` the averaged weights of the newest checkpoint. Raises CheckpointError where there is none."""
    steps = steps_saved(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no checkpoint: train this stage first")
    module.load_state_dict(load_file(folder / f"{steps[-1]:08d}" / "ema.safetensors"))
    return module.requires_grad_(False).eval()


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().contiguous() for name, t in tensors.items()}
