"""Outpainting: a picture is continued beyond its edges."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from langevin.images.hints import blurred
from langevin.images.pasting import extended
from langevin.images.pixels import to_rgb
from langevin.model.bundle import ModelBundle
from langevin.tasks.from_text import HoldsBundle, bundle_of
from langevin.tasks.image_requests import OutpaintRequest
from langevin.tasks.pictures import Given, as_input
from langevin.tasks.plan import Plan
from langevin.tasks.repainting import Canvas, repaint

BLUR = 1 / 32
"""Deviation of the Gaussian over what lies under the new parts, in shares of the longer side."""


def outpaint(model: ModelBundle | HoldsBundle, picture: Given, request: OutpaintRequest) -> Plan:
    """Plans larger pictures with the given one in them, bit for bit and in its mode, one for each seed.

    Under the new parts lie at first the picture's edges extended, or the picture reflected, blurred; what remains of
    that is up to the strength. Each result's seam is measured, see `seam`. The request's width and height, if given,
    are those that the model works at. Raises RequestError as `inpaint` does.
    """
    bundle = bundle_of(model)
    given = as_input("image", picture)
    upright = ImageOps.exif_transpose(given.picture)
    left, top, right, bottom = request.margins(*upright.size)
    larger = extended(upright, left, top, right, bottom, reflect=request.fill == "reflect")
    new = np.ones((larger.height, larger.width), bool)
    new[top : top + upright.height, left : left + upright.width] = False
    pixels = np.asarray(to_rgb(larger), dtype=np.float64)
    soft = np.where(new[..., None], blurred(pixels, BLUR * max(larger.size)), pixels)
    return repaint(
        bundle,
        Canvas(
            picture=larger,
            mask=np.where(new, 255, 0).astype(np.uint8),
            under=Image.fromarray(soft.round().astype(np.uint8), "RGB"),
        ),
        request.changed(width=request.width or larger.width, height=request.height or larger.height),
        inputs=(given,),
        record={"task": "outpainting"},
        measure=lambda made: seam(made, new),
    )


def seam(picture: Image.Image, new: np.ndarray) -> Mapping[str, float]:
    """How visible the border between old and new pixels is.

    new: bool H W. `seam_step` is the mean difference of two neighbouring pixels across the border, `inner_step` that of
    all others (means over colours, 0 to 255); `seam_ratio` is the first by the second: 1 is a border like any other
    place. It is left out where there is no difference inside.
    """
    pixels = np.asarray(to_rgb(picture), dtype=np.float64)
    across: list[np.ndarray] = []
    inside: list[np.ndarray] = []
    for axis in (0, 1):
        gap = np.abs(np.diff(pixels, axis=axis)).mean(2)
        border = np.diff(new.astype(np.int8), axis=axis) != 0
        across.append(gap[border])
        inside.append(gap[~border])
    step, inner = (float(np.concatenate(part).mean()) for part in (across, inside))
    return {**({"seam_ratio": step / inner} if inner else {}), "seam_step": step, "inner_step": inner}
