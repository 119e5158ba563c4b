"""Image to image: a picture is noised to some level and denoised with a text (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from dataclasses import replace

from PIL import ImageOps
from torch import Tensor

from langevin.images.pixels import to_tensor
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import ModelBundle
from langevin.tasks.area import encoding
from langevin.tasks.from_text import HoldsBundle, bundle_of, completed, parts_of, plan_pictures
from langevin.tasks.image_requests import ImageToImageRequest
from langevin.tasks.labels import pixel_channels
from langevin.tasks.pictures import Given, as_input, encode_picture, encode_sampled, resized
from langevin.tasks.plan import Plan
from langevin.tasks.setup import Setup


def image_to_image(model: ModelBundle | HoldsBundle, picture: Given, request: ImageToImageRequest) -> Plan:
    """Plans variations of a picture, one for each seed.

    The picture may have any mode; its transparent parts become white. It is brought to the request's size, or keeps its
    own. Sampling starts at the noise level that the strength stands for, whatever the sampler and the grid; a compat
    preset counts whole steps instead, as its program does, and with `diffusers` the picture's latents are samples of
    the posterior, by each picture's own stream. Raises RequestError as `text_to_image` does, DataError for a file that
    is no picture.
    """
    bundle = bundle_of(model)
    autoencoder, text = parts_of(bundle, request)
    given = as_input("image", picture)
    upright = ImageOps.exif_transpose(given.picture)
    request = request.changed(width=request.width or upright.width, height=request.height or upright.height)
    request = completed(request, bundle)
    fitted, notices = resized("the picture", upright, request.width or 0, request.height or 0)
    pixels = to_tensor(fitted)
    sampled = autoencoder is not None and request.compat == "diffusers"
    seeds = request.image_seeds() if sampled else None
    plan = plan_pictures(
        bundle,
        autoencoder,
        text,
        request,
        Setup(
            start=_start(bundle, encoding(autoencoder, request), pixels, seeds),
            strength=request.strength,
            skipped=(1, 0) if sampled else (0, 0),
            inputs=(given,),
            record={"task": "image-to-image"},
            notices=notices,
        ),
    )
    return with_start_notice(plan, request.strength)


def with_start_notice(plan: Plan, strength: float) -> Plan:
    """The plan with a notice of where it starts and what it costs."""
    first = float(plan.sigmas[0])
    return replace(
        plan,
        notices=(
            *plan.notices,
            f"strength {strength:g}: from sigma {first:.3g}, {len(plan.sigmas) - 1} steps, {plan.calls} network calls",
        ),
    )


def _start(
    bundle: ModelBundle, autoencoder: Autoencoder | None, pixels: Tensor, seeds: tuple[int, ...] | None
) -> Tensor:
    if autoencoder is None and pixel_channels(bundle) == 1:
        return pixels.mean(1, keepdim=True)
    if autoencoder is None or seeds is None:
        return encode_picture(autoencoder, pixels)
    return encode_sampled(autoencoder, pixels, seeds)
