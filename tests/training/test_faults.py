"""A disk that is full or fails, at each call of a save in turn, and what a run says when it cannot go on."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tests.training.small import CONFIG, Regression

from langevin.errors import CheckpointError, NotFiniteError
from langevin.training import checkpointing
from langevin.training.checkpointing import State
from langevin.training.config import LoopConfig
from langevin.training.ema import ExponentialMovingAverage
from langevin.training.loop import train
from langevin.training.optimizers import make_optimizer

CALLS = ("fsync", "rename", "replace", "mkdir", "chmod", "rmdir", "unlink", "link", "truncate")
"""Of `os`: whatever a save may call that changes the disk. Opening for writing and writing itself are added below."""


class Disk:
    """Counts the calls that change the disk and makes one of them fail."""

    def __init__(self, fail: int | None, error: Callable[[], Exception]) -> None:
        self.calls: list[str] = []
        self.fail = fail
        self.error = error
        self.failed = False

    def call(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self.fail:
            self.failed = True
            raise self.error()


class File:
    """An open file whose writes count."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.call("write")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def injected(disk: Disk) -> Iterator[None]:
    """Every way to the disk goes through `disk`: Python's files, `os`, and the safetensors writer."""

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            disk.call(name)
            return function(*args, **kwargs)

        return call

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return original(file, mode, *args, **kwargs)
        disk.call(f"open {mode}")
        return File(original(file, mode, *args, **kwargs), disk)

    original = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(checkpointing, "save_file", counted("save_file", checkpointing.save_file))
        yield


def make_state() -> State:
    objective, config = Regression(), LoopConfig.model_validate({**CONFIG.model_dump(), "averages": {"a": {}, "b": {}}})
    averages = {n: ExponentialMovingAverage(objective.module, a) for n, a in config.moving_averages.items()}
    optimizer = make_optimizer(objective.module, config)
    objective.loss([(0, 0), (0, 1)], 0)[0].backward()
    optimizer.step()
    return State(objective.module, averages, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def save(folder: Path, state: State, step: int) -> None:
    checkpointing.save(folder, step, state, {"seed": 0}, keep=2)


ERRORS = {
    "full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "broken": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "safetensors": lambda: SafetensorError("Error while serializing: I/O error: No space left on device"),
}


@pytest.mark.parametrize(("kind", "again"), [("full", False), ("broken", True)], ids=["new", "step that is there"])
def test_a_save_that_fails_anywhere_costs_no_good_checkpoint(tmp_path: Path, kind: str, again: bool) -> None:
    """The calls are counted in a save that succeeds; then each fails once."""
    state = make_state()
    weights = {name: value.clone() for name, value in state.module.state_dict().items()}
    for step in (1, 2):
        save(tmp_path / "base", state, step)
    with torch.no_grad():
        for parameter in state.module.parameters():
            parameter.add_(1)
    new = 2 if again else 3
    counting = Disk(None, ERRORS[kind])
    shutil.copytree(tmp_path / "base", tmp_path / "counted")
    with injected(counting):
        save(tmp_path / "counted", state, new)
    names = counting.calls
    assert names.count("save_file") == 4 and {"mkdir", "write", "fsync", "rename", "chmod"} <= set(names)

    for place, name in enumerate(names):
        folder = tmp_path / f"fault-{place}"
        shutil.copytree(tmp_path / "base", folder)
        disk = Disk(place, ERRORS["safetensors"] if name == "save_file" and kind == "full" else ERRORS[kind])
        failed = None
        with injected(disk):
            try:
                save(folder, state, new)
            except CheckpointError as error:
                failed = error
        assert disk.failed, (place, name)
        if failed is not None:
            assert "\n" not in str(failed) and (" cannot be written (" in str(failed) or " is written" in str(failed))
        checkpointing.clear_unfinished(folder)
        # The newest is whole and can be resumed: the one before, or the new one where the fault came after it was safe.
        newest = checkpointing.steps_saved(folder)[-1]
        assert checkpointing.load(folder, make_state(), {"seed": 0}) == newest, (place, name)
        assert newest in (2, new)
        found = load_file(folder / f"{newest:08d}" / "weights.safetensors")
        is_new, is_old = (all(torch.equal(found[n], weights[n] + k) for n in weights) for k in (1, 0))
        assert is_new or (is_old and newest == 2), (place, name)
        if failed is None:  # what could not be done need not be: a folder's sync, the removal of leftovers
            assert newest == new and is_new
        # And the next save is as if nothing had happened.
        save(folder, state, 4)
        assert checkpointing.steps_saved(folder)[-1] == 4
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".") and p.name.endswith(".tmp")]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_run_whose_save_fails_ends_with_one_line_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = 0

    def full(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # the second file of the second checkpoint
            raise error
        original(*args, **kwargs)  # type: ignore[arg-type]

    original = checkpointing.save_file
    monkeypatch.setattr(checkpointing, "save_file", full)
    with pytest.raises(CheckpointError, match=r"00000020 cannot be written .*No space.*the checkpoints before it"):
        for _ in train(Regression(), CONFIG, tmp_path, seed=0):
            pass
    folder = tmp_path / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["00000010"]
    monkeypatch.undo()
    for _ in train(Regression(), CONFIG, tmp_path, seed=0, resume=True):
        pass
    assert checkpointing.steps_saved(folder) == [50, 60]


@pytest.mark.parametrize("what", ["metrics", "preview"])
def test_figures_and_previews_that_cannot_be_written_are_one_line_too(tmp_path: Path, what: str) -> None:
    objective = Regression()
    if what == "metrics":
        (tmp_path / "metrics.jsonl").mkdir()
    else:
        (tmp_path / "preview-00000030.png").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be written .*; the last checkpoint is kept"):
        for _ in train(objective, CONFIG, tmp_path, seed=0):
            pass


class Named(Regression):
    """With a data set whose records have keys."""

    def __init__(self, poison: int) -> None:
        super().__init__(poison=poison)
        self.data = type("Data", (), {"records": [{"key": f"pictures/{i:02d}.png"} for i in range(self.count)]})


def test_a_loss_that_is_not_finite_names_the_step_and_all_files_of_the_batch(tmp_path: Path) -> None:
    import json

    config = CONFIG.model_copy(update={"batch_size": 10})
    with pytest.raises(NotFiniteError) as caught:
        for _ in train(Named(poison=24), config, tmp_path, seed=0):
            pass
    message = str(caught.value)
    assert message.startswith("the loss is nan at step 24 (samples 'pictures/") and " and 2 more)" in message
    assert "the checkpoint of step 20 is kept" in message
    written = json.loads((tmp_path / "not-finite.json").read_text())
    assert written["step"] == 24 and len(written["samples"]) == 10
    assert all(row["file"] == f"pictures/{row['index']:02d}.png" for row in written["samples"])
    assert all(repr(row["file"]) in message for row in written["samples"][:8])
