"""`langevin train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langevin.errors import RequestError


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("train")(train)


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe; --list shows them.", metavar="RECIPE", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder with the data set; docs/data.md shows the formats.",
            metavar="FOLDER",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder: checkpoints, curves, samples, the finished model.", metavar="FOLDER"),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Only this stage of the recipe; may be given several times."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's newest checkpoints.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the recipe.", metavar="NAME=VALUE")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop before the first step if a file of the data cannot be read.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the curves for TensorBoard too, to OUT/STAGE/tensorboard.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
    ] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    list_recipes: Annotated[bool, typer.Option("--list", help="Show the recipes and leave.")] = False,
) -> None:
    """Train a text-to-image model of your own: autoencoder, CLIP, denoiser; then write it as one file."""
    from langevin.training.recipes import RECIPES

    if list_recipes:
        for name, function in RECIPES.items():
            typer.echo(f"{name}: {(function.__doc__ or '').strip().splitlines()[0]}")
        return
    if recipe is None or data is None or out is None:
        raise RequestError("train needs a recipe, --data and --out: langevin train emoji --data FOLDER --out RUN")
    if recipe not in RECIPES:
        raise RequestError(f"recipe {recipe!r} is unknown; choose one of {', '.join(RECIPES)}")

    import torch

    from langevin.training.config import override
    from langevin.training.run import run_recipe

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = override(RECIPES[recipe](), list(assignments or ()))
    stages = list(config.loops)
    for name in stage or ():
        if name not in stages:
            raise RequestError(f"stage {name!r} is unknown; choose from {', '.join(stages)}")
    run_recipe(
        recipe,
        config,
        data,
        out,
        stages=stage or stages,
        device=device,
        resume=resume,
        strict=strict,
        tensorboard=tensorboard,
    )
