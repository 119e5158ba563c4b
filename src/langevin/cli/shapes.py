"""`langevin shapes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langevin.errors import RequestError


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("shapes")(shapes)


def shapes(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the two shards are written.")],
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Scenes to train on.")] = 20_000,
    held_out: Annotated[
        int, typer.Option("--held-out", metavar="N", help="Scenes with a pair of shape and colour never trained on.")
    ] = 4000,
    size: Annotated[int, typer.Option("--size", metavar="N", help="Width and height in pixels.")] = 32,
    seed: Annotated[int, typer.Option("--seed", "-s", metavar="N", help="Of the scenes.")] = 0,
) -> None:
    """Make a data set of captioned shapes, whose captions can be verified in a picture by measurement.

    The same seed gives the same bytes. Prints the path of each shard.
    """
    for name, value, low, high in (
        ("count", count, 0, 10**7),
        ("held-out", held_out, 0, 10**7),
        ("size", size, 32, 256),
    ):
        if not low <= value <= high:
            raise RequestError(f"{name} {value} is out of range; it must be from {low} to {high}")
    if not count + held_out:
        raise RequestError("count 0 and held-out 0: there is nothing to make")

    from langevin.training.data.shapes import write_shapes

    try:
        for number, unseen in ((count, False), (held_out, True)):
            if number:
                typer.echo(write_shapes(folder, number, seed=seed, size=size, held_out=unseen))
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror or error}") from None
