"""How long recipes take: each stage trains for a few steps, and its whole time is reckoned from the speed of those.

    python benchmarks/recipes.py RECIPE... --data FOLDER [--steps 12] [--threads N] [--clock wall] [--set NAME=VALUE]

For each stage it prints the samples a second (median of the steps but for the first and the last, which set up and
write), the stage's whole number of steps, and the time that these take at that speed. What a stage does before its
first step (latents and text states of all pictures) is shown beside; it grows with the pictures, so that `--set
data.include=...` may leave a part of them, and the time is then that of the part. A later stage runs on what the few
steps of the earlier ones have made: its speed is the same.

Run it on a machine that does nothing else, or with `--clock cpu --threads 1`, which counts the processor's time; the
hardware is printed with the figures.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from text_to_image import hardware

from langevin.baselines.compare import Clock
from langevin.baselines.recipes import RECIPES as BASELINES
from langevin.training.config import override
from langevin.training.data import PictureSet, read_data
from langevin.training.recipes import RECIPES
from langevin.training.system import System


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=list(Clock), default=Clock.WALL, type=Clock)
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{hardware()}; {arguments.clock} clock, {arguments.steps} steps a stage")
    known = {**RECIPES, **BASELINES}
    for name in arguments.recipes:
        if name not in known:
            parser.error(f"recipe {name!r} is unknown; choose from {', '.join(known)}")
        system = override(known[name](), arguments.assignments)
        data = read_data(arguments.data, system.data)
        with TemporaryDirectory() as folder:
            for _ in system.prepare(Path(folder), "cpu"):
                pass
            whole = 0.0
            for stage in system.loops:
                whole += measure(name, system, stage, data, Path(folder), arguments.steps, arguments.clock)
        print(f"{name}: {whole / 60:.0f} min in all", flush=True)


def measure(name: str, system: System, stage: str, data: PictureSet, run: Path, count: int, clock: Clock) -> float:
    """Train a stage for `count` steps and print its figures; returns the seconds of its whole length."""
    short = override(system, [f"{each}.loop.steps={count}" for each in system.loops])
    last = stage == [*system.loops][-1]
    began, setup, seconds = clock.now(), 0.0, []
    steps = short.train_stage(stage, data, run, device="cpu", resume=False)
    for step in steps:
        taken = clock.now() - began
        if step.step == 1:
            setup = taken
        elif step.step < count:
            seconds.append(taken)
            if last and step.step == count - 1:
                steps.close()  # nothing follows that would need its weights, and its preview may take long
        began = clock.now()
    loop, each = system.loops[stage], statistics.median(seconds)
    whole = each * loop.steps
    print(
        f"{name}, {stage}: {loop.batch_size / each:.1f} samples/s, {loop.steps} steps of {loop.batch_size}: "
        f"{whole / 60:.1f} min; set up in {setup:.1f} s with {len(data)} pictures",
        flush=True,
    )
    return whole


if __name__ == "__main__":
    main()
