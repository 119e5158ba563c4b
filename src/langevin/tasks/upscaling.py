"""Upscaling: a small picture and a text to a large picture; and the cascade, from a text by way of a small picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from PIL import Image

from langevin.diffusion.noise import Noise
from langevin.errors import RequestError
from langevin.images.pixels import to_tensor
from langevin.model.bundle import ModelBundle
from langevin.model.low_resolution import noised_picture
from langevin.tasks.from_text import HoldsBundle, bundle_of, plan_pictures, text_to_image
from langevin.tasks.plan import Plan
from langevin.tasks.request import GenerateRequest
from langevin.tasks.runner import run
from langevin.tasks.setup import Setup

LEVEL = 20
"""The usual noise level of the small picture."""


def upscale(
    model: ModelBundle | HoldsBundle, picture: Image.Image, request: GenerateRequest, *, level: int = LEVEL
) -> Plan:
    """Plans a large picture on a small one.

    A latent upscaler multiplies width and height by its autoencoder's factor; one of pixels makes pictures of the size
    that it was trained for. level: the timestep to which the small picture is noised first: 0 keeps all that it shows,
    flaws included, a higher one lets the model draw more of its own.

    Raises RequestError where the model is no upscaler, does not know the level, for a size other than the result's,
    and for more than one picture.
    """
    bundle = bundle_of(model)
    name = bundle.info.name
    if bundle.info.task != "upscaling" or bundle.text is None:
        raise RequestError(f"model {name} is for {bundle.info.task}: give an upscaler")
    levels = len(bundle.diffusion.schedule)
    if not 0 <= level < levels:
        raise RequestError(f"level {level} is out of bounds: this model's noise levels are 0 to {levels - 1}")
    seeds = request.image_seeds()
    if len(seeds) != 1:
        raise RequestError(f"{len(seeds)} pictures were asked for: one is upscaled at a time, with one seed")
    if request.prompt is None:
        raise RequestError("prompt is missing: say what the picture shows; '' says nothing")
    small = to_tensor(picture)  # 1 3 h w
    if bundle.autoencoder is None:
        width, height = bundle.info.default_size
        grid = (height, width)
    else:
        factor, grid = bundle.autoencoder.downsampling, (small.shape[-2], small.shape[-1])
        height, width = factor * grid[0], factor * grid[1]
    if request.width not in (None, width) or request.height not in (None, height):
        raise RequestError(
            f"size {request.width} x {request.height}: of this picture the model makes {width} x {height}"
        )
    noise = Noise([_seed(seeds[0], "small picture")], tuple(small.shape[1:])).initial()
    given = noised_picture(small, torch.tensor([level]), noise, bundle.diffusion.schedule, grid)
    asked = request.changed(width=width, height=height, seed=seeds[0], seeds=None, count=1)
    return plan_pictures(
        bundle, bundle.autoencoder, bundle.text, asked, Setup(beside=given.to(bundle.diffusion.device))
    )


@dataclass(frozen=True, eq=False)
class Cascaded:
    """What a cascade made."""

    small: list[Image.Image]
    """The base model's pictures."""
    images: list[Image.Image]
    """The upscaled ones, in the same order."""
    seeds: tuple[int, ...]


def cascade(
    base: ModelBundle | HoldsBundle,
    upscaler: ModelBundle | HoldsBundle,
    request: GenerateRequest,
    *,
    level: int = LEVEL,
) -> Cascaded:
    """Text to small pictures to large ones (Ho et al. 2022). The request holds for both models, but for its size,
    which is the base's. Each picture depends on its own seed alone; between the models it is rounded to 8 bits.

    Raises RequestError as `text_to_image` and `upscale` do.
    """
    first = run(text_to_image(base, request)).finish()
    images = []
    for picture, seed in zip(first.images, first.seeds, strict=True):
        second = request.changed(seed=_seed(seed, "upscaler"), seeds=None, count=1, width=None, height=None)
        images += run(upscale(upscaler, picture, second, level=level)).finish().images
    return Cascaded(first.images, images, first.seeds)


def _seed(seed: int, purpose: str) -> int:
    """Another stream of a picture's: two that begin alike would not be independent noise."""
    digest = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
