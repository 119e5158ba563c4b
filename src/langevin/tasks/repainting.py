"""Painting a part of a picture anew: what inpainting and outpainting share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from langevin.diffusion.core import Denoiser
from langevin.diffusion.grids import level_at
from langevin.diffusion.guidance import keep_known
from langevin.diffusion.inpainting import keep_until, renoised, resampled, segments
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.errors import RequestError
from langevin.images.masks import feathered
from langevin.images.pasting import pasted
from langevin.images.pixels import to_rgb, to_tensor
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.tasks.area import encoding
from langevin.tasks.from_picture import with_start_notice
from langevin.tasks.from_text import completed, parts_of, plan_pictures, run_numbers
from langevin.tasks.image_requests import RepaintRequest
from langevin.tasks.labels import pixel_channels
from langevin.tasks.pictures import encode_picture, encode_sampled, on_grid
from langevin.tasks.plan import Plan
from langevin.tasks.setup import Input, Setup

HALF = 128
"""A pixel of the mask is white from here on, where it is not soft."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Canvas:
    """A picture and the part of it that is painted anew."""

    picture: Image.Image
    """Upright, of any mode."""
    mask: np.ndarray
    """uint8 H W, not empty. Where it is 0 the picture stays as it is; see `soft` for the rest."""
    soft: bool = False
    """Grey is the share of the run in which a place may change. Else everything that is not 0 is white."""
    part: tuple[int, int, int, int] | None = None
    """LEFT, TOP, RIGHT, BOTTOM of what the model sees of it; None: all."""
    under: Image.Image | None = None
    """RGB, of the picture's size: what the model sees in the picture's place."""


def repaint(
    bundle: ModelBundle,
    canvas: Canvas,
    request: RepaintRequest,
    *,
    inputs: tuple[Input, ...],
    record: Mapping[str, Any],
    notices: tuple[str, ...] = (),
    measure: Callable[[Image.Image], Mapping[str, float]] | None = None,
) -> Plan:
    """Plans pictures that are the canvas's but for its mask, one for each seed.

    With an ordinary model what is not masked is given to the sampler as known, at the resolution of the latents; a cell
    is painted where any of its pixels is masked. A model for inpainting sees mask and picture in its further channels.
    The request's width and height are those that the model works at. Raises RequestError for other models.
    """
    own_channels = bundle.info.task == "inpainting"
    if own_channels:
        if bundle.text is None or bundle.autoencoder is None:
            raise RequestError(f"model {bundle.info.name} has no text encoder or autoencoder: give a whole model")
        if request.prompt is None:
            raise RequestError("prompt is missing: say what to draw")
        autoencoder: Autoencoder | None = bundle.autoencoder
        text: Any = bundle.text
    elif bundle.info.task in ("depth", "upscaling"):
        raise RequestError(
            f"model {bundle.info.name} is for {bundle.info.task}: give one for inpainting, or a text-to-image model"
        )
    else:
        autoencoder, text = parts_of(bundle, request)
    if canvas.soft and own_channels:
        raise RequestError(f"soft masks are for text-to-image models: model {bundle.info.name} is for inpainting")
    request = completed(request, bundle)
    seen = _Seen(bundle, autoencoder, canvas, request)
    if own_channels:
        setup = seen.beside()
        sampler = None
    else:
        setup, sampler = seen.known()
    plan = plan_pictures(
        bundle,
        autoencoder,
        text,
        request,
        replace(
            setup,
            strength=request.strength,
            finish=_finish(canvas, request.feather),
            measure=measure,
            inputs=inputs,
            record=record,
            notices=notices,
        ),
    )
    if sampler is not None:
        plan = replace(plan, sampler=sampler(plan.sampler))
    if request.resample > 1:
        made = dict(plan.record["sampler"])
        info = SAMPLERS[made.pop("name")]
        parts = segments(plan.sigmas, request.jump)
        calls = request.resample * sum(info.calls_on(part, **made) for part in parts)
        said = f"resample {request.resample}: {calls} network calls a picture instead of {plan.calls}"
        plan = replace(
            plan,
            sampler=resampled(plan.sampler, request.resample, request.jump),
            calls=calls,
            notices=(*plan.notices, said),
        )
    return with_start_notice(plan, request.strength)


class _Seen:
    """The canvas as the model sees it: at its size, encoded."""

    def __init__(
        self, bundle: ModelBundle, autoencoder: Autoencoder | None, canvas: Canvas, request: RepaintRequest
    ) -> None:
        self.bundle, self.request, self.soft = bundle, request, canvas.soft
        self.autoencoder = encoding(autoencoder, request)
        self.device = bundle.diffusion.device
        self.seeds = request.image_seeds()
        self.as_diffusers = request.compat == "diffusers" and autoencoder is not None
        size = (request.width or 0, request.height or 0)
        part = canvas.part or (0, 0, *canvas.picture.size)
        picture = (canvas.under or to_rgb(canvas.picture)).crop(part)
        # Enlarged or made smaller, a place is masked where any of its pixels was.
        grey = Image.fromarray(canvas.mask, "L").crop(part)
        self.pixels = to_tensor(picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS))
        grey = grey if grey.size == size else grey.resize(size, Image.Resampling.BOX)
        values = torch.from_numpy(np.array(grey)).float()[None, None] / 255  # 1 1 H W
        self.factor = 1 if autoencoder is None else autoencoder.downsampling
        self.grey = on_grid(values, self.factor)
        self.white = (self.grey > 0).float()

    def beside(self) -> Setup:
        """For a model for inpainting: 1 + C further channels, the mask and the latents of what it leaves (Rombach et
        al. 2022, as published: the mask by its nearest pixels, grey under it)."""
        assert self.autoencoder is not None
        pixels = on_grid(self.pixels, self.factor)
        whole = self.request.strength == 1
        left = pixels * (self.white < 0.5)
        spent = 0 if whole else 1
        if self.as_diffusers:
            if len(self.seeds) > 1:
                raise RequestError(
                    f"{len(self.seeds)} pictures with compat 'diffusers', which draws the masked picture's latents "
                    "from a picture's own noise: make them one at a time"
                )
            latents = encode_sampled(self.autoencoder, left, self.seeds, draw=spent + 1)
        else:
            latents = encode_picture(self.autoencoder, left)
        small = self._nearest()
        small = small if bool(small.any()) else self._covering()
        return Setup(
            beside=Conditioning(concat=torch.cat([small.to(latents), latents], 1)),
            start=None if whole else self._clean(),
            skipped=(spent, 1) if self.as_diffusers else (0, 0),
        )

    def known(self) -> tuple[Setup, Callable[[Any], Any] | None]:
        """For any other model: what is not masked is known. And, if need be, what becomes of the sampler."""
        clean = self._clean()
        request = self.request
        if self.soft:
            sigmas = run_numbers(self.bundle.diffusion, request, request.strength).sigmas
            share = F.avg_pool2d(self.grey, self.factor)
            levels = share.clone().apply_(lambda v: level_at(sigmas, 1 - v) if v > 0 else -1.0).to(clean)
            start = torch.where(share.to(clean) == 1, 0, clean) if request.strength == 1 else clean
            return Setup(start=start, wrap=lambda d: keep_until(d, clean, levels)), None
        if self.as_diffusers:
            mask = self._nearest().to(self.device) > 0
            if not bool(mask.any()):
                raise RequestError(
                    "the mask is smaller than a cell of the latents, which diffusers leaves out: grow it"
                )

            def of(noise: Noise) -> Tensor:
                return clean[[self.seeds.index(seed) for seed in noise.seeds]]

            whole = request.strength == 1
            setup = Setup(start=None if whole else clean, skipped=(1, 1))
            return setup, lambda sampler: renoised(sampler, of, mask, noise_first=whole)
        small = self._covering().to(clean)
        start = clean * (1 - small) if request.strength == 1 else clean

        def wrap(denoiser: Denoiser) -> Denoiser:
            return keep_known(denoiser, clean, small)

        return Setup(start=start, wrap=wrap), None

    def _clean(self) -> Tensor:
        if self.autoencoder is None:
            grey = pixel_channels(self.bundle) == 1
            return (self.pixels.mean(1, keepdim=True) if grey else self.pixels).to(self.device)
        if self.as_diffusers:
            return encode_sampled(self.autoencoder, self.pixels, self.seeds)
        return encode_picture(self.autoencoder, self.pixels)

    def _covering(self) -> Tensor:
        """1 1 h w, 1 where any pixel of a latent's cell is masked."""
        return F.max_pool2d(self.white, self.factor)

    def _nearest(self) -> Tensor:
        """1 1 h w, 1 where the first pixel of a latent's cell is masked."""
        return self.white[..., :: self.factor, :: self.factor]


def _finish(canvas: Canvas, feather: int) -> Callable[[Image.Image], Image.Image]:
    """Brings a picture of the model's size back into the canvas, under the mask alone."""
    weight = feathered(canvas.mask > 0, feather)
    left, top, right, bottom = canvas.part or (0, 0, *canvas.picture.size)

    def finish(painted: Image.Image) -> Image.Image:
        size = (right - left, bottom - top)
        if painted.size != size:
            painted = painted.resize(size, Image.Resampling.LANCZOS)
        whole = Image.new("RGB", canvas.picture.size)
        whole.paste(painted, (left, top))
        return pasted(canvas.picture, whole, weight)

    return finish
