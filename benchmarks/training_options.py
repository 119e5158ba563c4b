"""What options do to a stage's training: it is trained anew with each set of them, on the same samples with the same
noise, a step of each in turn.

    python benchmarks/training_options.py RECIPE STAGE --data FOLDER --out FOLDER [--base RUN] [--steps 300] \\
        --variant "adamw" --variant "muon: diffusion.loop.optimizer=muon diffusion.loop.learning_rate=2e-3"

A variant is a name, and after a colon what is set for it. `--base` is a run folder in which the stages before are
finished; without it they are trained first, by the recipe. The rate falls to its end within `--steps`. It prints the
mean loss of every tenth part of the steps and the median time of a step, and draws the curves into `--out`/losses.png.
Losses are compared as they are: options that change what the loss is (predictions, weights) are not comparable by them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from text_to_image import hardware

from langevin.training.config import override
from langevin.training.data import PictureSet, read_data
from langevin.training.metrics import read
from langevin.training.plots import check_plotting
from langevin.training.recipes import RECIPES
from langevin.training.system import System

COLOURS = ("#c0392b", "#2464b4", "#2a8f4f", "#8e44ad", "#d68910", "#444444")


class Variant(NamedTuple):
    name: str
    assignments: list[str]


def variant(text: str) -> Variant:
    name, _, assignments = text.partition(":")
    return Variant(name.strip(), assignments.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("stage")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--variant", dest="variants", action="append", type=variant, required=True)
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="for all variants")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    check_plotting()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    stage, steps = arguments.stage, arguments.steps
    recipe = override(RECIPES[arguments.recipe](), arguments.assignments)
    if stage not in recipe.loops:
        parser.error(f"{arguments.recipe} has no stage {stage!r}, but {', '.join(recipe.loops)}")
    if arguments.out.exists():
        parser.error(f"--out {arguments.out} is there already: give another")
    for before in list(recipe.loops)[: list(recipe.loops).index(stage)]:
        if arguments.base is not None and not (arguments.base / before).is_dir():
            parser.error(f"--base {arguments.base} has no stage {before}: train it first, or leave --base out")
    lengths = [f"{stage}.loop.steps={steps}", f"{stage}.loop.log_every=1", f"{stage}.loop.sample_every={steps + 1}"]
    lengths.append(f"cache.folder={arguments.out / 'cache'}")  # encoded once for all variants
    systems = {v.name: override(recipe, [*v.assignments, *lengths]) for v in arguments.variants}
    data = read_data(arguments.data, recipe.data)
    for name in systems:
        begin(recipe, stage, arguments, arguments.out / name, data)
    runs = {
        name: system.train_stage(stage, data, arguments.out / name, device=arguments.device, resume=False)
        for name, system in systems.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(steps):
        for name, run in runs.items():
            began = time.perf_counter()
            next(run)
            seconds[name].append(time.perf_counter() - began)
        if step % 25 == 24:
            print(f"{step + 1} of {steps} steps", flush=True)
    for run in runs.values():
        run.close()
    losses = {name: [row["loss"] for row in read(arguments.out / name / stage / "metrics.jsonl")] for name in runs}
    report(losses, seconds, arguments.out / "losses.png")


def begin(recipe: System, stage: str, arguments: argparse.Namespace, run: Path, data: PictureSet) -> None:
    """Put the stages before into a run folder: links to those of `--base`, or trained."""
    run.mkdir(parents=True)
    for before in list(recipe.loops)[: list(recipe.loops).index(stage)]:
        if arguments.base is not None:
            (run / before).symlink_to((arguments.base / before).resolve())
        else:
            for _ in recipe.train_stage(before, data, run, device=arguments.device, resume=False):
                pass


def report(losses: dict[str, list[float]], seconds: dict[str, list[float]], picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = len(next(iter(losses.values())))
    width = max(1, steps // 10)
    print(hardware())
    print(f"mean loss of {width} steps:\n")
    print("| step | " + " | ".join(losses) + " |\n" + "|---" * (1 + len(losses)) + "|")
    for end in range(width, steps + 1, width):
        means = (statistics.fmean(values[end - width : end]) for values in losses.values())
        print(f"| {end} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    print()
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.3f} s a step (median)")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for colour, (name, values) in zip(COLOURS, losses.items(), strict=False):
        smooth = [statistics.fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
        axes.plot(range(1, steps + 1), smooth, color=colour, linewidth=1.2, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, mean of {width} steps")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(picture, dpi=110)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
