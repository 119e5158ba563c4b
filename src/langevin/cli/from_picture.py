"""`langevin img2img`: pictures from a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from langevin.cli.generate import Output, Quiet, make_pictures
from langevin.cli.options import command
from langevin.tasks.image_requests import ImageToImageRequest
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan

Picture = Annotated[str, typer.Argument(help="The picture: PNG, JPEG, WebP, TIFF ...", metavar="IMAGE")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    options = (ModelOptions, ())
    command(app, img2img, "img2img", {"request": (ImageToImageRequest, ("prompt",)), "options": options})


def img2img(
    image: Picture,
    request: ImageToImageRequest,
    options: ModelOptions,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Make pictures from a picture and a text: variations, another style, more detail."""
    from langevin.tasks.from_picture import image_to_image
    from langevin.tasks.pictures import read_input

    given = read_input("image", image)

    def plan(bundle: ModelBundle, request: ImageToImageRequest) -> Plan:
        return image_to_image(bundle, given, request)

    make_pictures(request, options, output, plan, quiet=quiet)
