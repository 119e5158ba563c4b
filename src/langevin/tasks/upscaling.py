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
from langevin.tasks.large_requests import UpscaleRequest
from langevin.tasks.pictures import Given, as_input
from langevin.tasks.plan import Plan
from langevin.tasks.request import GenerateRequest
from langevin.tasks.runner import run
from langevin.tasks.setup import Setup


def upscale(model: ModelBundle | HoldsBundle, picture: Given, request: UpscaleRequest) -> Plan:
    """Plans a large picture on a small one.

    A latent upscaler multiplies width and height by its autoencoder's factor; one of pixels makes pictures of the size
    that it was trained for. Without a prompt nothing is said about the picture. The noise on the small picture comes
    from a stream of its own, which the picture's seed gives; with `compat` diffusers it is the first that the picture's
    own stream gives, as there.

    Raises RequestError where the model is no upscaler, does not know the noise level, for a size other than the
    result's, and for more than one picture; DataError for a file that is no picture.
    """
    bundle = bundle_of(model)
    name = bundle.info.name
    if bundle.info.task != "upscaling" or bundle.text is None:
        raise RequestError(f"model {name} is for {bundle.info.task}: give an upscaler")
    level, levels = request.noise_level, len(bundle.diffusion.schedule)
    if level >= levels:
        raise RequestError(f"noise_level {level} is out of bounds: this model's noise levels are 0 to {levels - 1}")
    seeds = request.image_seeds()
    if len(seeds) != 1:
        raise RequestError(f"{len(seeds)} pictures were asked for: one is upscaled at a time, with one seed")
    given = as_input("image", picture)
    small = to_tensor(given.picture)  # 1 3 h w
    shape = tuple(small.shape[1:])
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
    theirs = request.compat == "diffusers"
    noise = Noise([seeds[0] if theirs else derived_seed(seeds[0], "small picture")], shape).initial()
    beside = noised_picture(small, torch.tensor([level]), noise, bundle.diffusion.schedule, grid)
    prompt = "" if request.prompt is None else request.prompt
    return plan_pictures(
        bundle,
        bundle.autoencoder,
        bundle.text,
        request.changed(prompt=prompt, width=width, height=height, seed=seeds[0], seeds=None, count=1),
        Setup(
            beside=beside.to(bundle.diffusion.device),
            before=shape if theirs else None,
            inputs=(given,),
            notices=_compat_notices(request, *grid),
        ),
    )


@dataclass(frozen=True, eq=False)
class Cascaded:
    """What a cascade made."""

    small: list[Image.Image]
    """The base model's pictures."""
    images: list[Image.Image]
    """The upscaled ones, in the same order."""
    seeds: tuple[int, ...]


def cascade(base: ModelBundle | HoldsBundle, upscaler: ModelBundle | HoldsBundle, request: UpscaleRequest) -> Cascaded:
    """Text to small pictures to large ones (Ho et al. 2022). The request holds for both models, but for its size,
    which is the base's. Each picture depends on its own seed alone; between the models it is rounded to 8 bits.

    Raises RequestError as `text_to_image` and `upscale` do.
    """
    first = run(text_to_image(base, base_request(request))).finish()
    images = []
    for picture, seed in zip(first.images, first.seeds, strict=True):
        images += run(upscale(upscaler, picture, upscaler_request(request, seed))).finish().images
    return Cascaded(first.images, images, first.seeds)


def base_request(request: UpscaleRequest) -> GenerateRequest:
    """What a cascade asks of its base."""
    shared = request.model_fields_set & GenerateRequest.model_fields.keys()
    return GenerateRequest(**{name: getattr(request, name) for name in shared})


def upscaler_request(request: UpscaleRequest, seed: int) -> UpscaleRequest:
    """What a cascade asks of its upscaler, for the base's picture of a seed."""
    own = derived_seed(seed, "upscaler")
    return request.changed(seed=own, seeds=None, count=1, width=None, height=None, label=None)


def derived_seed(seed: int, purpose: str) -> int:
    """Another stream of a picture's: two that begin alike would not be independent noise."""
    digest = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _compat_notices(request: UpscaleRequest, height: int, width: int) -> tuple[str, ...]:
    match request.compat:
        case "langevin":
            return ()
        case "diffusers":
            if width % 4 == 0 and height % 4 == 0:
                return ()
            return (f"{width} x {height} is not a multiple of 4: diffusers would make the small picture smaller first",)
        case other:
            return (f"the noise on the small picture is our own: {other}'s conventions hold for all else",)
