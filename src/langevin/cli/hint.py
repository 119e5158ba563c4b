"""`langevin hint`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from langevin.errors import RequestError


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("hint")(hint)


def hint(
    kind: Annotated[
        str,
        typer.Argument(help="canny, blur, colour-grid, line-art or segments.", metavar="KIND", show_default=False),
    ],
    image: Annotated[Path, typer.Argument(help="The picture.", metavar="IMAGE", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file, which is replaced.", metavar="FILE")],
    low: Annotated[
        float | None,
        typer.Option("--low", min=0, help="canny: weaker edges are never kept. [default: 100]", show_default=False),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option("--high", min=0, help="canny: stronger edges always are. [default: 200]", show_default=False),
    ] = None,
) -> None:
    """Make of a picture what a ControlNet is steered by: edges, lines, colours."""
    from langevin.images.hints import HINTS
    from langevin.images.pixels import open_picture
    from langevin.images.png import write_png

    if kind not in HINTS:
        raise RequestError(f"hint {kind!r} is unknown; choose one of {', '.join(HINTS)}")
    thresholds = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
    if kind != "canny" and thresholds:
        raise RequestError(f"--{next(iter(thresholds))} has no meaning for hint {kind}: leave it out")
    made = partial(HINTS[kind], **thresholds)(open_picture(image))
    try:
        write_png(output, made)
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror or error}") from None
