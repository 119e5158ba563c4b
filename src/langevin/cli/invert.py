"""`langevin invert`, `langevin regenerate` and `langevin edit`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langevin.cli.from_picture import Picture
from langevin.cli.generate import Output, Quiet, check_folder, make_pictures
from langevin.cli.options import command
from langevin.errors import RequestError
from langevin.tasks.inversion_request import EditRequest, InvertRequest, RegenerateOptions
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    command(app, invert, "invert", {"request": (InvertRequest, ("prompt",)), "options": (ModelOptions, ())})
    command(app, regenerate, "regenerate", {"changes": (RegenerateOptions, ()), "options": (ModelOptions, ())})
    command(app, edit, "edit", {"request": (EditRequest, ()), "options": (ModelOptions, ())})


def invert(
    image: Picture,
    request: InvertRequest,
    options: ModelOptions,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="safetensors file, replaced if it exists.", show_default=False
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Find the noise that a picture would have come from. Prints the file's path."""
    if output.suffix.lower() != ".safetensors":
        raise RequestError(f"output {str(output)!r} is not a .safetensors file: noise is written as one")
    if output.is_dir():
        raise RequestError(f"output {str(output)!r} is a folder: give a file in it")
    check_folder(output.parent, make=False)

    from langevin.tasks.inversion import invert
    from langevin.tasks.latent_file import write_latent
    from langevin.tasks.opening import open_bundle
    from langevin.tasks.pictures import read_input

    given = read_input("image", image)
    bundle = open_bundle(options)
    with _watched("inverting", quiet=quiet) as finished:
        found = invert(bundle, given, request, finished=finished)
    try:
        write_latent(output, found)
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror or error}") from None
    typer.echo(output)
    if not quiet:
        for notice in found.notices:
            typer.echo(f"notice: {notice}", err=True)


def regenerate(
    latent: Annotated[
        Path, typer.Argument(metavar="LATENT", help="A file that langevin invert wrote.", show_default=False)
    ],
    changes: RegenerateOptions,
    options: ModelOptions,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Make the picture that inverted noise leads back to, or with another prompt, another one. Prints its path."""
    from langevin.tasks.inversion import regenerate
    from langevin.tasks.latent_file import check_model, read_latent, whereabouts

    found = read_latent(latent)
    if options.model is None:
        model, revision = whereabouts(found)
        options = options.model_copy(update={"model": model, "revision": revision})

    def plan(bundle: ModelBundle, request: InvertRequest) -> Plan:
        check_model(found, bundle)
        return regenerate(bundle, found, **changes.given())

    make_pictures(found.request.changed(**changes.given()), options, output, plan, quiet=quiet)


def edit(
    image: Picture, request: EditRequest, options: ModelOptions, output: Output = None, quiet: Quiet = False
) -> None:
    """Change a picture from what one text says to what another says. Prints the path."""
    from langevin.tasks.editing import edit
    from langevin.tasks.pictures import read_input

    given = read_input("image", image)

    def plan(bundle: ModelBundle, request: EditRequest) -> Plan:
        with _watched("inverting", quiet=quiet) as finished:
            return edit(bundle, given, request, finished=finished)

    make_pictures(request, options, output, plan, quiet=quiet)


@contextmanager
def _watched(title: str, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A progress bar on a terminal's stderr for work that tells its share."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)
