"""`langevin generate` and `langevin reproduce`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from langevin.cli.options import command
from langevin.errors import RequestError
from langevin.tasks.request import GenerateRequest, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan
    from langevin.tasks.runner import Run

R = TypeVar("R", bound=GenerateRequest)

Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="PNG file, replaced if it exists; several pictures are numbered (FILE-0.png ...). A folder gets names "
        "made of prompt and seed, and nothing in it is replaced. [default: this folder]",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no notices.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    command(app, generate, "generate", {"request": (GenerateRequest, ("prompt",)), "options": (ModelOptions, ())})
    app.command("reproduce")(reproduce)


def generate(request: GenerateRequest, options: ModelOptions, output: Output = None, quiet: Quiet = False) -> None:
    """Make pictures from a text, or from a class (--label). Prints the path of each."""
    make_pictures(request, options, output, quiet=quiet)


def make_pictures(
    request: R,
    options: ModelOptions,
    output: str | None,
    plan: Callable[[ModelBundle, R], Plan] | None = None,
    *,
    one_by_one: bool = False,
    quiet: bool,
) -> None:
    """Runs a request and writes each picture as soon as it is done, with its path on stdout and notices on stderr.

    plan: a task's; None is text to image's. It is called with every seed fixed, after all places to write to have
    been checked. one_by_one: it is called for each picture by itself.
    """
    seeds = request.image_seeds()
    request = request.changed(seed=None, count=1, seeds=seeds) if request.seeds else request.changed(seed=seeds[0])
    words = request.prompt if request.prompt is not None else str("" if request.label is None else request.label)
    paths = output_paths(output, words, seeds)

    from langevin.tasks.from_text import text_to_image
    from langevin.tasks.opening import open_bundle
    from langevin.tasks.runner import run

    bundle = open_bundle(options)
    parts = [request.changed(seed=seed, seeds=None, count=1) for seed in seeds] if one_by_one else [request]
    waiting = iter(paths)
    notices: dict[str, None] = {}
    for part in parts:
        running = run((plan or text_to_image)(bundle, part))
        _save_all(running, waiting, quiet=quiet)
        notices.update(dict.fromkeys(running.notices))
    if not quiet:
        for notice in notices:
            typer.echo(f"notice: {notice}", err=True)


def _save_all(running: Run, paths: Iterator[tuple[Path, bool]], *, quiet: bool) -> None:
    """Runs to the end and writes each picture to the next path."""
    saved = 0

    def save_finished() -> None:
        nonlocal saved
        while saved < len(running.pictures):
            typer.echo(save(running, saved, *next(paths)))
            saved += 1

    follow(running, save_finished, quiet=quiet)


def reproduce(
    image: Annotated[Path, typer.Argument(help="A PNG file that langevin wrote.", metavar="IMAGE")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare the pixels; exit code 1 if they differ.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the picture made again.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="TEXT", help="Where the weights are now. [default: as in the picture]"),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="YAML or JSON that says what the weights do not.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .ckpt, .pt and .bin files.")] = False,
    additions: Annotated[
        Path,
        typer.Option(
            "--additions",
            metavar="FOLDER",
            help="Where the picture's LoRA, embedding, autoencoder and ControlNet files are now; others are looked for "
            "by name in $LANGEVIN_MODELS. [default: this folder]",
            show_default=False,
        ),
    ] = Path(),
    inputs: Annotated[
        Path,
        typer.Option(
            "--inputs",
            metavar="FOLDER",
            help="Where the pictures are now that it was made from. [default: this folder]",
            show_default=False,
        ),
    ] = Path(),
    quiet: Quiet = False,
) -> None:
    """Make a picture again from what is written in it."""
    if not verify and output is None:
        raise RequestError("nothing to do: give --verify to compare the pixels, -o FILE to write the picture, or both")
    if output is not None:
        _check_file(output)

    import torch

    from langevin.images.png import read_png
    from langevin.tasks.reproduce import Recipe

    picture, manifest = read_png(image)
    recipe = Recipe.of(manifest, model, config=config, allow_pickle=allow_pickle, additions=additions)
    if 1 <= recipe.threads <= (os.cpu_count() or 1):
        torch.set_num_threads(recipe.threads)
    if not quiet:
        for notice in recipe.notices():
            typer.echo(f"notice: {notice}", err=True)
    given = recipe.find_inputs(inputs)
    running = recipe.start(recipe.open(), given)
    follow(running, lambda: None, quiet=quiet)
    again = running.pictures[recipe.index]
    if output is not None:
        typer.echo(save(running, recipe.index, output, True))
    if verify:
        found = recipe.differences(picture, again)
        if found:
            typer.echo(f"{image}: {found}", err=True)
            raise typer.Exit(1)
        typer.echo(f"{image}: the same, pixel for pixel")


def output_paths(output: str | None, prompt: str, seeds: tuple[int, ...]) -> list[tuple[Path, bool]]:
    """Where each picture goes, and whether it may replace what is there. RequestError if nothing can be written there.

    A file that was named is replaced, as by other commands that take one. In a folder, names are made of the prompt
    and the seed, and a name that is taken gets a number.
    """
    folder = Path(output or ".")
    if output is None or folder.is_dir() or output.endswith(("/", os.sep)):
        check_folder(folder, make=True)
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "picture"
        return [(folder / f"{words}-{seed}.png", False) for seed in seeds]
    _check_file(folder)
    if len(seeds) == 1:
        return [(folder, True)]
    digits = len(str(len(seeds) - 1))
    return [(folder.with_name(f"{folder.stem}-{i:0{digits}}{folder.suffix}"), True) for i in range(len(seeds))]


def save(running: Run, index: int, path: Path, replace: bool) -> Path:
    """Writes a picture with its manifest; gives the path it got."""
    from langevin.images.png import free_name, write_png
    from langevin.tasks.manifest import parameters

    manifest = running.manifest(index)
    while True:
        target = path if replace else free_name(path)
        try:
            write_png(target, running.pictures[index], manifest, parameters(manifest), overwrite=replace)
        except FileExistsError:
            continue  # somebody else took the name in between
        except OSError as error:
            raise RequestError(f"cannot write {target}: {error.strerror or error}") from None
        return target


def follow(running: Run, finished: Callable[[], Any], *, quiet: bool) -> None:
    """Runs to the end with a progress bar on a terminal's stderr; `finished` is called when pictures may be done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        for step in running:
            finished()
            which = f"picture {running.images[0] + 1}/{running.plan.count}, " if running.plan.count > 1 else ""
            bar.update(task, completed=running.progress, description=f"{which}step {step.index + 1}")
        finished()


def _check_file(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise RequestError(f"output {str(path)!r} is not a .png file: pictures are written as PNG, give FILE.png")
    if path.is_dir():
        raise RequestError(f"output {str(path)!r} is a folder: give a file in it")
    check_folder(path.parent, make=False)


def check_folder(folder: Path, *, make: bool) -> None:
    """RequestError unless files can be written in the folder. make: it may be made first."""
    if make and not folder.exists():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise RequestError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not folder.is_dir():
        raise RequestError(f"the folder {folder} does not exist: make it first")
    if not os.access(folder, os.W_OK):
        raise RequestError(f"the folder {folder} cannot be written to: choose another with -o")
