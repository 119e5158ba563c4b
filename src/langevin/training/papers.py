"""`run.json`: what a run folder was made with, and whether a further sitting fits it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from langevin.checkpoints.atomic import atomic_write
from langevin.errors import RequestError
from langevin.training import distributed
from langevin.training.checkpointing import steps_saved
from langevin.training.data import PictureSet
from langevin.training.system import System
from langevin.version import __version__

_NAME = "run.json"


def check_papers(run: Path, config: System) -> None:
    """RequestError where the folder holds checkpoints that were made with other options than `config`'s.

    Compared are the options of the stages that have begun, so that a later stage may still be changed. Checkpoints
    refuse another training loop or other data themselves; here the rest is refused before anything is overwritten:
    the networks' sizes, the prediction type.
    """
    begun = [stage for stage in config.loops if steps_saved(run / stage / "checkpoints")]
    if not begun:
        return
    sections = frozenset[str]().union(*map(config.depends, begun))
    try:
        before = dict(_leaves(json.loads((run / _NAME).read_text())["config"]))
    except (OSError, ValueError, KeyError, TypeError):
        return  # no papers: the checkpoints' own comparison is what is left
    for name, value in _leaves(config.model_dump(mode="json")):
        if name.split(".")[0] in sections and not config.may_change(name) and before.get(name, value) != value:
            raise RequestError(
                f"{run} was begun with {name} = {before[name]!r}, not {value!r}: give the same options, "
                "or another --out"
            )


def write_papers(run: Path, recipe: str, config: System, pictures: PictureSet, device: str) -> None:
    """Recipe, configuration, data and, of the last sitting, the environment."""
    papers = {
        "recipe": recipe,
        "config": config.model_dump(mode="json"),
        "data": {"pictures": len(pictures), "fingerprint": pictures.fingerprint},
        "environment": {
            "langevin": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": device,
            "threads": torch.get_num_threads(),
            "processes": distributed.world(),
        },
    }
    with atomic_write(run / _NAME) as temporary:
        temporary.write_text(json.dumps(papers, indent=1))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is not itself a section, by its full name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, value
