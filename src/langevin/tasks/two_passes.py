"""Pictures above the size that a model was trained for, in two passes: small, enlarged, and denoised again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from langevin.errors import RequestError
from langevin.images.pixels import to_tensor
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import ModelBundle
from langevin.tasks.area import Area, network_strides
from langevin.tasks.from_text import HoldsBundle, bundle_of, completed, parts_of, plan_pictures, text_to_image
from langevin.tasks.labels import pixel_channels
from langevin.tasks.large_requests import LEAST_FACTOR, LargeRequest
from langevin.tasks.pictures import encode_picture
from langevin.tasks.plan import Plan
from langevin.tasks.request import GenerateRequest
from langevin.tasks.runner import Result, Run, run
from langevin.tasks.setup import Setup
from langevin.tasks.upscaling import derived_seed


def large(
    model: ModelBundle | HoldsBundle, request: LargeRequest, follow: Callable[[Run], object] = Run.finish
) -> Plan:
    """Plans the second pass of large pictures; the first one, which it starts from, is run here.

    The first pass is text to image at the model's size, where it composes well; its pictures are enlarged and become
    the start of image to image at the size asked for. Its noise comes from another stream of each picture's seed.
    follow: runs the first pass to its end, for those who show progress.

    Raises RequestError as `text_to_image` does, and where the size is not larger than the first pass's.
    """
    bundle = bundle_of(model)
    autoencoder, text = parts_of(bundle, request)
    if autoencoder is None and request.hires_upscale == "latent":
        raise RequestError(f"model {bundle.info.name} is of pixels and has no latents: use hires_upscale lanczos")
    request = completed(_sized(request, bundle), bundle)
    small = first_pass(bundle, request)
    running = run(text_to_image(bundle, small))
    follow(running)
    first = running.finish()
    area = Area.of(request, bundle.diffusion.network, autoencoder)
    seeds = tuple(derived_seed(seed, "second pass") for seed in first.seeds)
    plan = plan_pictures(
        bundle,
        autoencoder,
        text,
        request.changed(seed=None, seeds=seeds, count=1),
        Setup(
            start=_start(bundle, area.autoencoder(autoencoder), first, request, area),
            strength=request.hires_strength,
            record={"task": "large", "first_pass": [small.width, small.height]},
            notices=tuple(f"first pass: {notice}" for notice in running.notices),
        ),
    )
    steps = len(plan.sigmas) - 1
    said = (
        f"first pass {small.width} x {small.height}, then {request.width} x {request.height} in {steps} "
        f"step{'s' if steps > 1 else ''} from sigma {float(plan.sigmas[0]):.3g}"
    )
    return replace(plan, request=request, notices=(*plan.notices, said))


def first_pass(bundle: ModelBundle, request: LargeRequest) -> GenerateRequest:
    """The request of the first pass, for a completed request of both: its size is a multiple of the latent's cells, or
    where edges are to fit together, of the network's strides."""
    f = 1 if bundle.autoencoder is None else bundle.autoencoder.downsampling
    wide = f * network_strides(bundle.diffusion.network)
    units = (wide if request.seamless in ("x", "both") else f), (wide if request.seamless in ("y", "both") else f)
    factor = request.hires or 1.0
    width, height = (
        max(unit, 8, round((size or 0) / factor / unit) * unit)
        for size, unit in zip((request.width, request.height), units, strict=True)
    )
    shared = request.model_fields_set & GenerateRequest.model_fields.keys()
    values = {name: getattr(request, name) for name in shared}
    return GenerateRequest(**{**values, "width": width, "height": height, "tile": None})


def _sized(request: LargeRequest, bundle: ModelBundle) -> LargeRequest:
    """The request with size and factor: what is missing of them follows from the model's size and the rest."""
    own_width, own_height = bundle.info.default_size
    factor = request.hires
    if request.width is None and request.height is None:
        factor = factor or 2.0
        width, height = round(own_width * factor), round(own_height * factor)
    else:
        width = request.width or round((request.height or 0) * own_width / own_height)
        height = request.height or round((request.width or 0) * own_height / own_width)
        factor = factor or math.sqrt(width * height / (own_width * own_height))
    if factor < LEAST_FACTOR:
        raise RequestError(
            f"{width} x {height} is not larger than the model's {own_width} x {own_height}: one pass is enough, use "
            "generate, or give hires"
        )
    return request.changed(width=width, height=height, hires=factor)


def _start(
    bundle: ModelBundle, autoencoder: Autoencoder | None, first: Result, request: LargeRequest, area: Area
) -> Tensor:
    """Latents N C h w of the first pass, enlarged."""
    y, x = area.wraps
    if request.hires_upscale == "latent":
        return _enlarged_latents(first.latents, area.grid, x=x, y=y).to(bundle.diffusion.device)
    size = request.width or 0, request.height or 0
    pictures = [enlarged(picture, *size, x=x, y=y) for picture in first.images]
    if autoencoder is None and pixel_channels(bundle) == 1:
        return torch.cat([to_tensor(picture).mean(1, keepdim=True) for picture in pictures])
    return torch.cat([encode_picture(autoencoder, picture) for picture in pictures])


def enlarged(picture: Image.Image, width: int, height: int, *, x: bool = False, y: bool = False) -> Image.Image:
    """A picture at another size by Lanczos' filter. x, y: along these axes it wraps, and so does the filter."""
    columns, rows = (3 if x else 1), (3 if y else 1)
    around = Image.new(picture.mode, (columns * picture.width, rows * picture.height))
    for row in range(rows):
        for column in range(columns):
            around.paste(picture, (column * picture.width, row * picture.height))
    resized = around.resize((columns * width, rows * height), Image.Resampling.LANCZOS)
    left, top = columns // 2 * width, rows // 2 * height
    return resized.crop((left, top, left + width, top + height))


def _enlarged_latents(latents: Tensor, grid: tuple[int, int], *, x: bool, y: bool) -> Tensor:
    columns, rows = (3 if x else 1), (3 if y else 1)
    around = latents.repeat(1, 1, rows, columns)
    resized = F.interpolate(around, (rows * grid[0], columns * grid[1]), mode="bicubic", align_corners=False)
    top, left = rows // 2 * grid[0], columns // 2 * grid[1]
    return resized[..., top : top + grid[0], left : left + grid[1]]
