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
    recipe: Annotated[str, typer.Argument(help="Name of the recipe.", metavar="RECIPE")],
    data: Annotated[Path, typer.Option("--data", help="Folder with the data set's shards.", metavar="FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="Run folder: checkpoints, curves, samples.", metavar="FOLDER")],
    stage: Annotated[
        list[str] | None, typer.Option("--stage", help="Only this stage; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: name=value.", metavar="NAME=VALUE")
    ] = None,
) -> None:
    """Train a model by a recipe."""
    from langevin.training.config import override
    from langevin.training.recipes import RECIPES
    from langevin.training.run import run_recipe
    from langevin.training.text_to_image import STAGES

    if recipe not in RECIPES:
        raise RequestError(f"recipe {recipe!r} is unknown; choose one of {', '.join(RECIPES)}")
    for name in stage or ():
        if name not in STAGES:
            raise RequestError(f"stage {name!r} is unknown; choose from {', '.join(STAGES)}")
    config = override(RECIPES[recipe](), list(assignments or ()))
    run_recipe(recipe, config, data, out, stages=tuple(stage or STAGES), device=device, resume=resume)
