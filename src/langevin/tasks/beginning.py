"""The picture that a steered task may begin from."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from PIL import ImageOps

from langevin.images.pixels import to_tensor
from langevin.model.autoencoder import Autoencoder
from langevin.tasks.area import encoding
from langevin.tasks.control_request import SteeredRequest
from langevin.tasks.pictures import encode_picture, encode_sampled, resized
from langevin.tasks.setup import Input, Setup

R = TypeVar("R", bound=SteeredRequest)


def sized(request: R, image: Input | None) -> R:
    """The request with the width and height of the picture that it begins from, where it says none."""
    if image is None:
        return request
    picture = ImageOps.exif_transpose(image.picture)
    return request.changed(width=request.width or picture.width, height=request.height or picture.height)


def with_beginning(setup: Setup, autoencoder: Autoencoder, given: Input, request: SteeredRequest) -> Setup:
    """The setup of a run that begins from a picture, as image to image does. request: a completed one."""
    picture = ImageOps.exif_transpose(given.picture)
    fitted, notices = resized("the picture", picture, request.width or 0, request.height or 0)
    pixels = to_tensor(fitted)
    autoencoder = encoding(autoencoder, request)
    sampled = request.compat == "diffusers"  # which starts from a sample of the posterior
    return replace(
        setup,
        start=encode_sampled(autoencoder, pixels, request.image_seeds())
        if sampled
        else encode_picture(autoencoder, pixels),
        skipped=(1, 0) if sampled else (0, 0),
        strength=request.strength,
        inputs=(*setup.inputs, given),
        notices=(*setup.notices, *notices),
    )
