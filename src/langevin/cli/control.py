"""`langevin control`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from langevin.cli.generate import Output, Quiet, make_pictures
from langevin.cli.options import command
from langevin.errors import RequestError
from langevin.tasks.control_request import ControlRequest, split_control, split_strength
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from langevin.model.bundle import ModelBundle
    from langevin.tasks.plan import Plan

Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        "-c",
        metavar="KIND=PICTURE[:STRENGTH[:START-END]]",
        help="A hint, once for each. KIND is `hint` where the picture is one, or what makes one of the picture: canny, "
        "line-art, blur, colour-grid, segments. STRENGTH is 1 if left out; START and END are shares of the run.",
        show_default=False,
    ),
]
Networks = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet",
        metavar="FILE",
        help="What each hint acts through, in their order: a ControlNet or T2I-Adapter, as file, diffusers folder or "
        "Hub id; emoji-edges is the one inside the package. [default: the ControlNet in the model's own file]",
        show_default=False,
    ),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option(
        "--ip-image",
        metavar="PICTURE[:STRENGTH]",
        help="A picture as a prompt beside the text, once for each. STRENGTH is 1 if left out.",
        show_default=False,
    ),
]
Prompters = Annotated[
    list[str] | None,
    typer.Option(
        "--ip-adapter",
        metavar="FILE",
        help="The IP-Adapter that each --ip-image acts through, in their order: a file, a name or a Hub id of a file.",
        show_default=False,
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--image-encoder",
        metavar="PLACE",
        help="The CLIP image encoder of the IP-Adapters: a folder, or a file. [default: the folder "
        "image_encoder beside each]",
        show_default=False,
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--image", metavar="FILE", help="A picture to begin from, with --strength. [default: none]", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    command(app, control, "control", {"request": (ControlRequest, ("prompt",)), "options": (ModelOptions, ())})


def control(
    request: ControlRequest,
    options: ModelOptions,
    control: Control = None,
    controlnet: Networks = None,
    ip_image: Pictures = None,
    ip_adapter: Prompters = None,
    image_encoder: Encoder = None,
    image: Start = None,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Make pictures from a text, steered by hints or by pictures as prompts. Prints the path of each."""
    wanted = [split_control(text) for text in control or []]
    shown = [split_strength(text) for text in ip_image or []]
    if not wanted and not shown:
        raise RequestError("nothing steers: give at least one --control or --ip-image")
    files = controlnet or []
    if files and len(files) != len(wanted):
        raise RequestError(
            f"{len(wanted)} controls and {len(files)} files to act through: give one --controlnet for each --control"
        )
    if len(adapters := ip_adapter or []) != len(shown):
        raise RequestError(
            f"{len(shown)} pictures as prompts and {len(adapters)} IP-Adapters: give one --ip-adapter for each"
        )
    if image_encoder is not None and not adapters:
        raise RequestError("an image encoder without an IP-Adapter: give --ip-adapter and --ip-image too")
    request = request.changed(
        controls=tuple(how for how, _ in wanted), image_strengths=tuple(strength for _, strength in shown)
    )

    from langevin.checkpoints.steering import add_ip_adapter, add_steering
    from langevin.tasks.controlling import control as plan_control
    from langevin.tasks.pictures import read_input

    pictures = [read_input(f"control {i}", path) for i, (_, path) in enumerate(wanted)]
    prompts = [read_input(f"image prompt {i}", path) for i, (path, _) in enumerate(shown)]
    begun = None if image is None else read_input("image", image)

    def plan(bundle: ModelBundle, request: ControlRequest) -> Plan:
        for file in files:
            bundle = add_steering(bundle, file, allow_pickle=options.allow_pickle)
        for file in adapters:
            bundle = add_ip_adapter(bundle, file, image_encoder, allow_pickle=options.allow_pickle)
        return plan_control(bundle, pictures, request, image=begun, prompts=prompts)

    make_pictures(request, options, output, plan, quiet=quiet)
