"""Run a recipe from the command line: progress, interruption, the run folder's papers."""

from __future__ import annotations

import json
import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from langevin.checkpoints.atomic import atomic_write
from langevin.training.data import PictureSet, read_shards
from langevin.training.export import export
from langevin.training.plots import plot_metrics
from langevin.training.text_to_image import STAGES, Stage, TextToImageConfig, train_stage
from langevin.version import __version__


def run_recipe(
    recipe: str,
    config: TextToImageConfig,
    data: Path,
    run: Path,
    *,
    stages: Sequence[str],
    device: str,
    resume: bool,
) -> None:
    """Train the stages in turn, with progress on the terminal; write `run/model.safetensors` after the last.

    Ctrl-C ends after the step in hand, with a checkpoint, and raises KeyboardInterrupt.
    """
    console = Console(stderr=True)
    pictures = read_shards(data, config.data)
    for line in pictures.unreadable:
        console.print(f"unreadable: {line}", markup=False)
    console.print(f"{len(pictures)} pictures, fingerprint {pictures.fingerprint[:12]}, on {device}")
    run.mkdir(parents=True, exist_ok=True)
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
        },
    }
    with atomic_write(run / "run.json") as temporary:
        temporary.write_text(json.dumps(papers, indent=1))
    for stage in (s for s in STAGES if s in stages):
        _run_stage(config, stage, pictures, run, console, device=device, resume=resume)
    if STAGES[-1] in stages:
        path = export(config, pictures, run)
        console.print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _run_stage(
    config: TextToImageConfig,
    stage: Stage,
    pictures: PictureSet,
    run: Path,
    console: Console,
    *,
    device: str,
    resume: bool,
) -> None:
    total = getattr(config, stage).loop.steps
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress, _interruption() as interrupted:
        task = progress.add_task(stage, total=total, figures="")
        steps = train_stage(config, stage, pictures, run, device=device, resume=resume)
        for step in steps:
            progress.update(task, completed=step.step)
            if step.metrics is not None:
                m = step.metrics
                progress.update(task, figures=f"loss {m['loss']:.4f}, {m['samples_per_second']:.0f} images/s")
            if interrupted:
                steps.close()
                raise KeyboardInterrupt
    plot_metrics(run / stage)


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising in the middle of a step."""
    signals: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, previous)
