"""What is said when a run cannot go on: a number is not finite, a file cannot be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.checkpoints.atomic import atomic_write
from langevin.errors import CheckpointError, NotFiniteError
from langevin.training import distributed
from langevin.training.ahead import Part

_SHOWN = 8


def not_finite(
    what: str, value: Tensor, step: int, batch: list[Part], saved: int, objective: Any, folder: Path
) -> NotFiniteError:
    """The error, which names the step and the files of the first samples; `folder/not-finite.json` names them all (a
    further process's: `not-finite-RANK.json`)."""
    if torch.isfinite(value):
        return NotFiniteError(f"the {what} is not finite at step {step} in another process, which names the files")
    samples = [pair for part in batch for pair in part.samples]
    files = file_names(objective, [index for _, index in samples])
    shown = ", ".join(repr(name) for name in files[:_SHOWN])
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    which = f"-{distributed.rank()}" if distributed.rank() else ""
    with suppress(OSError), atomic_write(folder / f"not-finite{which}.json") as temporary:
        rows = [{"epoch": e, "index": i, "file": f} for (e, i), f in zip(samples, files, strict=True)]
        temporary.write_text(json.dumps({"step": step, "what": what, "value": str(float(value)), "samples": rows}))
    kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
    return NotFiniteError(
        f"the {what} is {float(value)} at step {step} (samples {shown}{more}); {kept}: look at these, or lower "
        "loop.learning_rate and start again"
    )


def file_names(objective: Any, indices: list[int]) -> list[str]:
    """What the data set calls these samples: the key of the record; the index where there is none."""
    records = getattr(getattr(objective, "data", None), "records", None)
    return [str(records[i].get("key", i)) if records is not None else str(i) for i in indices]


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """An OSError of the block as one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}); the last checkpoint is kept") from error
