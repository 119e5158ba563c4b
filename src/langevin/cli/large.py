"""`langevin upscale`, `langevin cascade` and `langevin large`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langevin.cli.from_picture import Picture
from langevin.cli.generate import Output, Quiet, follow, make_pictures, output_paths, save
from langevin.cli.options import command
from langevin.tasks.large_requests import LargeRequest, UpscaleRequest
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan
    from langevin.tasks.runner import Run

Upscaler = Annotated[
    str,
    typer.Option(
        "--upscaler",
        metavar="TEXT",
        help="The second model, that stands on the first one's picture: a file, a folder, a name or a Hub id.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    options = (ModelOptions, ())
    command(app, upscale, "upscale", {"request": (UpscaleRequest, ("prompt",)), "options": options})
    command(app, cascade, "cascade", {"request": (UpscaleRequest, ("prompt",)), "options": options})
    command(app, large, "large", {"request": (LargeRequest, ("prompt",)), "options": options})


def upscale(
    image: Picture, request: UpscaleRequest, options: ModelOptions, output: Output = None, quiet: Quiet = False
) -> None:
    """Make a large picture of a small one, with an upscaler (--model)."""
    from langevin.tasks.pictures import read_input
    from langevin.tasks.upscaling import upscale as plan_upscaling

    given = read_input("image", image)

    def plan(bundle: ModelBundle, request: UpscaleRequest) -> Plan:
        return plan_upscaling(bundle, given, request)

    if request.prompt is None:
        request = request.changed(prompt="")
    make_pictures(request, options, output, plan, one_by_one=True, quiet=quiet)


def cascade(
    upscaler: Upscaler, request: UpscaleRequest, options: ModelOptions, output: Output = None, quiet: Quiet = False
) -> None:
    """Make small pictures from a text (--model) and large ones of them (--upscaler). Writes both: FILE-small.png."""
    seeds = request.image_seeds()
    paths = output_paths(output, request.prompt or "", seeds)

    from langevin.tasks.from_text import text_to_image
    from langevin.tasks.opening import open_bundle
    from langevin.tasks.runner import run
    from langevin.tasks.setup import Input
    from langevin.tasks.upscaling import base_request, upscaler_request
    from langevin.tasks.upscaling import upscale as plan_upscaling

    base = open_bundle(options)
    shared = {name: getattr(options, name) for name in ("dtype", "device", "allow_pickle")}
    second = open_bundle(ModelOptions(model=upscaler, **shared))
    notices: dict[str, None] = {}

    def made(running: Run, path: Path, replace: bool) -> Path:
        follow(running, lambda: None, quiet=quiet)
        notices.update(dict.fromkeys(running.notices))
        written = save(running, 0, path, replace)
        typer.echo(written)
        return written

    for seed, (path, replace) in zip(seeds, paths, strict=True):
        own = request.changed(seed=seed, seeds=None, count=1)
        first = run(text_to_image(base, base_request(own)))
        small = made(first, path.with_name(f"{path.stem}-small{path.suffix}"), replace)
        given = Input("image", first.pictures[0], small)
        made(run(plan_upscaling(second, given, upscaler_request(own, seed))), path, replace)
    if not quiet:
        for notice in notices:
            typer.echo(f"notice: {notice}", err=True)


def large(request: LargeRequest, options: ModelOptions, output: Output = None, quiet: Quiet = False) -> None:
    """Make pictures above the model's size in two passes: small, enlarged, and denoised again. Prints each path."""
    from langevin.tasks.two_passes import large as plan_large

    def plan(bundle: ModelBundle, request: LargeRequest) -> Plan:
        return plan_large(bundle, request, lambda running: follow(running, lambda: None, quiet=quiet))

    make_pictures(request, options, output, plan, one_by_one=True, quiet=quiet)
