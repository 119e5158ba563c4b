"""Inpainting: a part of a picture is painted anew by a text, the rest stays bit for bit."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from langevin.errors import RequestError
from langevin.images.masks import around, grown, mask_of_alpha, mask_of_box, mask_of_picture, mask_of_polygon
from langevin.images.pasting import check_mode
from langevin.model.bundle import ModelBundle
from langevin.tasks.from_text import HoldsBundle, bundle_of
from langevin.tasks.image_requests import InpaintRequest
from langevin.tasks.pictures import Given, as_input, same_size
from langevin.tasks.plan import Plan
from langevin.tasks.repainting import HALF, Canvas, repaint
from langevin.tasks.setup import Input


def inpaint(
    model: ModelBundle | HoldsBundle, picture: Given, request: InpaintRequest, *, mask: Given | None = None
) -> Plan:
    """Plans pictures that are the given one but for a part, one for each seed.

    picture: of any mode; its pixels outside the mask are those of every result, in the same mode. mask: white is
    painted anew, of the picture's size; or the request says where: `box`, `polygon` or `alpha`. Works with models for
    inpainting, text-to-image models and models of pixels.

    Raises RequestError for a mask that is missing, empty, of another size or given twice, and for models for something
    else; DataError for files that are no pictures.
    """
    bundle = bundle_of(model)
    given = as_input("image", picture)
    drawn = None if mask is None else as_input("mask", mask)
    upright = ImageOps.exif_transpose(given.picture)
    check_mode(upright)
    white = _mask(upright, drawn, request)
    part = None
    notices: tuple[str, ...] = ()
    width, height = upright.size
    if request.only_masked:
        width, height = bundle.info.default_size
    width, height = request.width or width, request.height or height
    if request.only_masked:
        part = around(white, request.padding, width / height)
        notices = (f"only {part[0]},{part[1]} to {part[2]},{part[3]} is worked on, at {width} x {height}",)
    return repaint(
        bundle,
        Canvas(picture=upright, mask=white, soft=request.soft, part=part),
        request.changed(width=width, height=height),
        inputs=(given,) if drawn is None else (given, drawn),
        record={"task": "inpainting"},
        notices=notices,
    )


def _mask(picture: Image.Image, drawn: Input | None, request: InpaintRequest) -> np.ndarray:
    """uint8 H W: what may change, 0 or 255, or with a soft mask in between too."""
    ways = {"mask": drawn, "box": request.box, "polygon": request.polygon, "alpha": request.alpha or None}
    asked = [name for name, value in ways.items() if value is not None]
    if len(asked) != 1:
        what = f"{' and '.join(asked)} were given" if asked else "the mask is missing"
        raise RequestError(f"{what}: give one of mask, box, polygon or alpha")
    width, height = picture.size
    if drawn is not None:
        upright = ImageOps.exif_transpose(drawn.picture)
        same_size("mask", upright, width, height)
        mask = mask_of_picture(upright)
    elif request.box is not None:
        mask = mask_of_box(width, height, request.box)
    elif request.polygon is not None:
        mask = mask_of_polygon(width, height, request.polygon)
    else:
        mask = mask_of_alpha(picture)
    if request.invert:
        mask = 255 - mask
    if not request.soft:
        mask = np.where(mask >= HALF, 255, 0).astype(np.uint8)
    mask = grown(mask, request.grow)
    if not mask.any():
        raise RequestError(
            f"the mask is empty, after {asked[0]}{', invert' if request.invert else ''}"
            f"{f', grow {request.grow}' if request.grow else ''}: nothing in it is white, which says what to repaint"
        )
    return mask
