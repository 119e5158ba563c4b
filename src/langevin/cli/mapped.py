"""`langevin depth2img`, `langevin semantic2img` and `langevin depth`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langevin.cli.control import Start
from langevin.cli.generate import Output, Quiet, make_pictures
from langevin.cli.options import command
from langevin.errors import RequestError
from langevin.tasks.control_request import DepthRequest, SemanticRequest, SteeredRequest
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan

Depth = Annotated[
    str,
    typer.Argument(help="Depth map: grey, of 8 or 16 bits, lighter is nearer.", metavar="DEPTH", show_default=False),
]
Classes = Annotated[
    str,
    typer.Argument(
        help="Map of classes: grey or indexed, each pixel the number of its class; or in colours, with --palette.",
        metavar="MAP",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    options = (ModelOptions, ())
    command(app, depth2img, "depth2img", {"request": (DepthRequest, ("prompt",)), "options": options})
    command(app, semantic2img, "semantic2img", {"request": (SemanticRequest, ("prompt",)), "options": options})
    app.command("depth")(depth)


def depth2img(
    depth: Depth,
    request: DepthRequest,
    options: ModelOptions,
    image: Start = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Make pictures from a text and a depth map, with a depth model. Prints the path of each."""
    from langevin.tasks.mapped import depth_to_image

    _make(depth_to_image, "depth", depth, request, options, image, output, quiet)


def semantic2img(
    classes: Classes,
    request: SemanticRequest,
    options: ModelOptions,
    image: Start = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Make pictures from a text and a map of classes, with a model trained on such. Prints the path of each."""
    from langevin.tasks.mapped import semantic_to_image

    _make(semantic_to_image, "map", classes, request, options, image, output, quiet)


def _make(
    task: Callable[..., Plan],
    role: str,
    path: str,
    request: SteeredRequest,
    options: ModelOptions,
    image: str | None,
    output: str | None,
    quiet: bool,
) -> None:
    from langevin.tasks.pictures import read_input

    given = read_input(role, path)
    begun = None if image is None else read_input("image", image)

    def plan(bundle: ModelBundle, request: Any) -> Plan:
        return task(bundle, given, request, image=begun)

    make_pictures(request, options, output, plan, quiet=quiet)


def depth(
    image: Annotated[Path, typer.Argument(help="The picture.", metavar="IMAGE", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file, which is replaced.", metavar="FILE")],
    depth_model: Annotated[
        Path,
        typer.Option(
            "--depth-model",
            metavar="FOLDER",
            help="A depth model of the transformers library, as in the depth_estimator of Stable Diffusion 2's folder.",
            show_default=False,
        ),
    ],
    device: Annotated[str, typer.Option("--device", help="Where it runs: cpu, cuda ...", metavar="TEXT")] = "cpu",
) -> None:
    """Make the depth map of a picture, in 16 bits of grey: lighter is nearer."""
    from langevin.images.depth import estimate_depth
    from langevin.images.pixels import open_picture
    from langevin.images.png import write_png
    from langevin.tasks.opening import check_device

    check_device(device)
    found = estimate_depth(open_picture(image), depth_model, device=device)
    try:
        write_png(output, found)
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror or error}") from None
