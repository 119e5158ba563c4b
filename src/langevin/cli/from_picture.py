"""`langevin img2img`, `langevin inpaint` and `langevin outpaint`: pictures from a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from langevin.cli.generate import Output, Quiet, make_pictures
from langevin.cli.options import command
from langevin.errors import RequestError
from langevin.tasks.image_requests import ImageToImageRequest, InpaintRequest, OutpaintRequest
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan
    from langevin.tasks.setup import Input

Picture = Annotated[str, typer.Argument(help="The picture: PNG, JPEG, WebP, TIFF ...", metavar="IMAGE")]
Mask = Annotated[
    str | None,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="A picture of the same size, white where it is repainted. [default: --box, --polygon or --alpha says it]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    options = (ModelOptions, ())
    command(app, img2img, "img2img", {"request": (ImageToImageRequest, ("prompt",)), "options": options})
    command(app, inpaint, "inpaint", {"request": (InpaintRequest, ("prompt",)), "options": options})
    command(app, outpaint, "outpaint", {"request": (OutpaintRequest, ("prompt",)), "options": options})


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


def inpaint(
    image: Picture,
    request: InpaintRequest,
    options: ModelOptions,
    mask: Mask = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Repaint a part of a picture by a text. Every other pixel stays as it is, bit for bit."""
    from langevin.tasks.inpainting import inpaint as plan_inpainting
    from langevin.tasks.pictures import read_input

    given = _as_png("image", image)
    drawn = None if mask is None else read_input("mask", mask)

    def plan(bundle: ModelBundle, request: InpaintRequest) -> Plan:
        return plan_inpainting(bundle, given, request, mask=drawn)

    make_pictures(request, options, output, plan, quiet=quiet)


def outpaint(
    image: Picture,
    request: OutpaintRequest,
    options: ModelOptions,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Continue a picture beyond its edges by a text. Its own pixels stay as they are, bit for bit."""
    from langevin.tasks.outpainting import outpaint as plan_outpainting

    given = _as_png("image", image)

    def plan(bundle: ModelBundle, request: OutpaintRequest) -> Plan:
        return plan_outpainting(bundle, given, request)

    make_pictures(request, options, output, plan, quiet=quiet)


def _as_png(role: str, path: str) -> Input:
    """Reads a picture that is to be written again, with its very pixels. RequestError where PNG does not hold such."""
    from langevin.images.pasting import PNG_MODES
    from langevin.tasks.pictures import read_input

    given = read_input(role, path)
    if given.picture.mode not in PNG_MODES:
        raise RequestError(
            f"{path} is of mode {given.picture.mode}, whose pixels no PNG file holds unchanged: convert it to RGB "
            "first, or call langevin.tasks from Python"
        )
    return given
