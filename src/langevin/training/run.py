"""Run a recipe from the command line: progress, interruption, the run folder's papers."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from langevin.errors import DataError, RequestError
from langevin.tasks.opening import check_device
from langevin.training import distributed
from langevin.training.board import Board, check_board
from langevin.training.checkpointing import steps_saved
from langevin.training.data import PictureSet, read_data
from langevin.training.papers import check_papers, write_papers
from langevin.training.plots import check_plotting, plot_metrics
from langevin.training.system import System

_LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""


def run_recipe(
    recipe: str,
    config: System,
    data: Path,
    run: Path,
    *,
    stages: Sequence[str],
    device: str,
    resume: bool,
    strict: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train the stages in turn, with progress on the terminal; write `run/model.safetensors` after the last.

    Ctrl-C ends after the step in hand, with a checkpoint, and raises KeyboardInterrupt; a second one ends at once.
    Whatever can be refused is refused before the first step: RequestError for a device that is not here, a folder
    that cannot be written, options that do not fit a run that has begun; DataError for data that cannot be read, with
    `strict` for a single unreadable file. Under `torchrun` every process comes here; the first prints and writes.
    """
    check_plotting()
    if tensorboard:
        check_board()
    check_device(device)
    with distributed.processes(device) as device:
        _run(recipe, config, data, run, stages, device, resume=resume, strict=strict, tensorboard=tensorboard)


def _run(
    recipe: str,
    config: System,
    data: Path,
    run: Path,
    stages: Sequence[str],
    device: str,
    *,
    resume: bool,
    strict: bool,
    tensorboard: bool,
) -> None:
    chief = distributed.rank() == 0
    console = Console(stderr=True, quiet=not chief)
    _check_folder(run)
    check_papers(run, config)
    pictures = read_data(data, config.data)
    for line in pictures.unreadable:
        console.print(f"unreadable: {line}", markup=False)
    if strict and pictures.unreadable:
        raise DataError(
            f"{len(pictures.unreadable)} of the data set's files cannot be read, see above: mend or remove them, or "
            "leave out --strict"
        )
    among = f" and {distributed.world() - 1} more processes" if distributed.world() > 1 else ""
    console.print(f"{len(pictures)} pictures, fingerprint {pictures.fingerprint[:12]}, on {device}{among}")
    distributed.wait()  # all have compared the papers
    if chief:
        write_papers(run, recipe, config, pictures, device)
        _prepare(config, run, console, device)
    distributed.wait()
    for stage in (s for s in config.loops if s in stages):
        with Board(run / stage, tensorboard and chief) as board:
            _run_stage(config, stage, pictures, run, console, board, device=device, resume=resume)
    if list(config.loops)[-1] in stages and chief:
        path = config.finish(pictures, run)
        console.print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    distributed.wait()


def _prepare(config: System, run: Path, console: Console, device: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    steps = config.prepare(run, device)
    with _interruption() as interrupted:
        if (first := next(steps, None)) is None:
            return
        with Progress(*columns, console=console) as progress:
            tasks: dict[str, TaskID] = {}
            for what, done, total in chain([first], steps):
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done)
                if interrupted:
                    raise KeyboardInterrupt


def _run_stage(
    config: System,
    stage: str,
    pictures: PictureSet,
    run: Path,
    console: Console,
    board: Board,
    *,
    device: str,
    resume: bool,
) -> None:
    loop, chief = config.loops[stage], distributed.rank() == 0
    begun = max(steps_saved(run / stage / "checkpoints"), default=0)
    if resume:
        console.print(f"{stage}: goes on from step {begun}" if begun else f"{stage}: nothing to go on from, begins")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}"),
    )
    said = time.monotonic()
    with Progress(*columns, console=console) as progress, _interruption() as interrupted:
        task = progress.add_task(stage, total=loop.steps, completed=begun, figures="")
        steps = config.train_stage(stage, pictures, run, device=device, resume=resume)
        for step in steps:
            progress.update(task, completed=step.step)
            if step.metrics is not None:
                board.add(step.step, step.metrics)
                speed = step.metrics["samples_per_second"]
                figures = f"loss {step.metrics['loss']:.4f}, {speed:.0f} images/s"
                progress.update(task, figures=figures)
                if not console.is_terminal and time.monotonic() - said > _LINE_EVERY:
                    said = time.monotonic()
                    minutes = (loop.steps - step.step) * loop.batch_size / speed / 60
                    console.print(f"{stage} {step.step}/{loop.steps}: {figures}, {minutes:.0f} min left")
            if step.measured is not None:
                board.add(step.step, step.measured)
                measured = ", ".join(f"{name} {value:.4f}" for name, value in step.measured.items())
                console.print(f"{stage} {step.step}/{loop.steps}: {measured}")
            if chief and step.step % loop.sample_every == 0:
                plot_metrics(run / stage)
            if distributed.anywhere(bool(interrupted)):
                steps.close()
                raise KeyboardInterrupt
    if chief:
        plot_metrics(run / stage)


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collects the first Ctrl-C instead of raising in the middle of a step; the second one raises."""
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, previous)


def _check_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise RequestError(f"{run} cannot be written ({error.strerror}): give another --out") from None
