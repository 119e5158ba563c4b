"""Text to image, and class to image: the plan."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from langevin.diffusion.compat import COMPAT, ImageToImage, Resolved, image_to_image_steps, resolve
from langevin.diffusion.core import Denoiser
from langevin.diffusion.grids import custom_grid, truncated
from langevin.diffusion.guidance import clipped, switch_at
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS
from langevin.diffusion.tiles import tiled
from langevin.errors import RequestError
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.guided import guided_model
from langevin.model.precision import float32_autoencoder, float32_model
from langevin.model.text import PromptEncoder
from langevin.tasks.area import Area
from langevin.tasks.labels import encode_label, further_channels, pixel_channels
from langevin.tasks.manifest import describe
from langevin.tasks.options import show
from langevin.tasks.plan import Decode, Plan
from langevin.tasks.prompt_files import with_prompt_files
from langevin.tasks.prompts import Texts, encode_prompts
from langevin.tasks.request import GenerateRequest
from langevin.tasks.setup import Setup

R = TypeVar("R", bound=GenerateRequest)

DEFAULT_SAMPLER = "dpmpp_2m"
DEFAULT_BATCH = 4
_PLAIN = Setup()


class HoldsBundle(Protocol):
    """What `langevin.load` gives."""

    @property
    def bundle(self) -> ModelBundle: ...


def text_to_image(model: ModelBundle | HoldsBundle, request: GenerateRequest) -> Plan:
    """Plans pictures from a text; with a model of pixels, from a class or from nothing.

    Every default is filled in and every seed fixed (`plan.request`), prompts are encoded once, and the starting noise
    is drawn. Raises RequestError where the model cannot do what is asked.
    """
    bundle = bundle_of(model)
    return plan_pictures(bundle, *parts_of(bundle, request), request)


def bundle_of(model: ModelBundle | HoldsBundle) -> ModelBundle:
    return model if isinstance(model, ModelBundle) else model.bundle


def plan_pictures(
    bundle: ModelBundle,
    autoencoder: Autoencoder | None,
    text: PromptEncoder | None,
    request: GenerateRequest,
    setup: Setup = _PLAIN,
) -> Plan:
    """The plan of a request that fits the model. autoencoder, text: the model's own, where it has them. setup: what a
    task adds. Files that the prompt names are put into the model first."""
    bundle, request = with_prompt_files(bundle, request)
    text = None if text is None else bundle.text
    request = completed(request, bundle)
    numbers = run_numbers(bundle.diffusion, request, None if setup.start is None else setup.strength)
    area = Area.of(request, bundle.diffusion.network, autoencoder)
    network = bundle.diffusion.network if setup.images is None else setup.images.told(bundle.diffusion.network)
    diffusion = replace(bundle.diffusion, times=numbers.times, network=area.network(network))
    autoencoder = area.autoencoder(autoencoder)
    if text is None:
        texts = encode_label(bundle, request)
    else:
        with torch.no_grad():
            texts = encode_prompts(text, next(diffusion.network.parameters()), request, numbers.sigmas)
    if setup.beside is not None:
        texts = texts.beside(setup.beside)
    if setup.images is not None:
        texts = texts.seeing(setup.images)
    seeds = request.image_seeds()
    width, height = request.width or 0, request.height or 0
    channels = pixel_channels(bundle) if autoencoder is None else autoencoder.latent_channels
    h, w = area.grid
    noise = Noise(
        seeds,
        (channels, h, w),
        device=diffusion.device,
        interval=numbers.interval_noise,
        step_seed_offset=numbers.step_seed_offset,
        skipped=setup.skipped,
        before=setup.before,
    )
    info = SAMPLERS[numbers.sampler]
    options = sampler_options(request, numbers)
    half = diffusion.dtype != torch.float32
    x = noise.initial() * numbers.prior_scale
    if setup.start is not None:
        x = setup.start.to(x) + noise.initial() * float(numbers.sigmas[0])

    def denoiser(model: DiffusionModel, texts: Texts) -> Denoiser:
        pixels = autoencoder is None
        if area.tiles:
            guided = tiled(lambda tile: _denoiser(model, texts.within(tile), request, pixels=pixels), area.tiles)
        else:
            guided = _denoiser(model, texts, request, pixels=pixels)
        return guided if setup.wrap is None else setup.wrap(guided)

    return Plan(
        request=request,
        denoiser=denoiser(diffusion, texts),
        x=x,
        sigmas=numbers.sigmas,
        sampler=partial(info.function, **options),
        noise=noise,
        decode=_decode(autoencoder, height, width),
        final_scale=numbers.final_scale,
        batch_size=request.batch_size or 1,
        calls=info.calls_on(numbers.sigmas, **options),
        precision=str(diffusion.dtype).removeprefix("torch."),
        finish=setup.finish,
        measure=setup.measure,
        denoiser_float32=(lambda: denoiser(float32_model(diffusion), texts.float32())) if half else None,
        decode_float32=(
            (lambda: _decode(float32_autoencoder(autoencoder), height, width))
            if autoencoder is not None and autoencoder.dtype != torch.float32
            else None
        ),
        notices=(
            *bundle.info.notices,
            *numbers.notices,
            *area.notices,
            *texts.notices,
            *setup.notices,
            *_idle_notices(request),
        ),
        record={
            "task": bundle.info.task,
            "sampler": {"name": numbers.sampler, **options},
            "sigmas": numbers.sigmas.tolist(),
            "timesteps": diffusion.time(numbers.sigmas[numbers.sigmas > 0]).tolist(),
            "tokens": texts.tokens,
            "latent": [channels, h, w],
            **({"inputs": [given.describe() for given in setup.inputs]} if setup.inputs else {}),
            **setup.record,
        },
        source=partial(describe, bundle),
    )


def completed(request: R, bundle: ModelBundle) -> R:
    """The request with nothing left open: defaults from the model and the compat preset, seeds fixed.

    Completing a completed request changes nothing.
    """
    info = bundle.info
    conventions = COMPAT[request.compat]
    values: dict[str, Any] = {}

    def fill(name: str, value: object) -> None:
        if getattr(request, name) is None:
            values[name] = value

    fill("width", info.default_size[0])
    fill("height", info.default_size[1])
    fill("guidance", info.default_guidance)
    if bundle.text is not None:
        fill("weighting", conventions.weighting)
        fill("long", conventions.long_prompts)
    fill("sampler", info.default_sampler or DEFAULT_SAMPLER)
    sampler = request.sampler or info.default_sampler or DEFAULT_SAMPLER
    if request.sigmas is None:
        fill("steps", info.default_steps)
        if sampler in conventions.samplers:  # otherwise `run_numbers` says what is wrong
            fill("schedule", conventions.samplers[sampler].grid)
    if request.mode == "fast":
        fill("batch_size", DEFAULT_BATCH)
    if request.seeds is None:
        values["seed"] = request.image_seeds()[0]
    return request.changed(**values)


def run_numbers(model: DiffusionModel, request: GenerateRequest, strength: float | None = None) -> Resolved:
    """The noise levels, scales and times of a completed request's run.

    strength: of a run that starts from a picture, in (0, 1]: the last part of the grid is left, cut by the compat
    preset's rule. Raises RequestError where nothing is left.
    """
    sampler = request.sampler or DEFAULT_SAMPLER
    if request.sigmas is None:
        steps = request.steps or 1
        conventions = COMPAT[request.compat]
        by_steps = strength is not None and conventions.image_to_image is not ImageToImage.LANGEVIN
        total, ran = image_to_image_steps(conventions, steps, strength or 1.0) if by_steps else (steps, steps)
        numbers = resolve(
            request.compat, sampler, model.schedule, total, grid=request.schedule, prediction=model.prediction
        )
        if strength is None:
            return numbers
        if by_steps:
            return replace(numbers, sigmas=numbers.sigmas[-(ran + 1) :])
        return replace(numbers, sigmas=truncated(numbers.sigmas, strength))
    sigmas = custom_grid(request.sigmas)
    if strength is not None:
        sigmas = truncated(sigmas, strength)
    plain = resolve("langevin", sampler, model.schedule, 1, prediction=model.prediction)
    return replace(
        plain,
        sigmas=sigmas,
        prior_scale=float(sigmas[0]),
        final_scale=1 / math.sqrt(1 + float(sigmas[-1]) ** 2),
        notices=(*plain.notices, *_level_notices(sigmas, model)),
    )


def sampler_options(request: GenerateRequest, numbers: Resolved) -> dict[str, Any]:
    """The options that the sampler is called with: the program's, then the user's. RequestError for one it has not."""
    asked: dict[str, Any] = dict(request.sampler_options)
    if request.eta is not None:
        if "eta" in asked:
            raise RequestError("eta was given twice: as eta and among sampler_options")
        asked["eta"] = request.eta
    options = {**numbers.sampler_options, **asked}
    SAMPLERS[numbers.sampler].check(options)
    return options


def parts_of(bundle: ModelBundle, request: GenerateRequest) -> tuple[Autoencoder | None, PromptEncoder | None]:
    """The autoencoder, None for a model of pixels, and the text encoder, None for one of classes or of nothing."""
    name = bundle.info.name
    if bundle.info.task in ("class-to-image", "unconditional"):
        return bundle.autoencoder, None
    if bundle.info.task != "text-to-image":
        raise RequestError(f"model {name} is for {bundle.info.task}: give a text-to-image model")
    if bundle.text is None:
        raise RequestError(f"model {name} has no text encoder: give a whole text-to-image model")
    if bundle.autoencoder is not None and (more := further_channels(bundle)):
        raise RequestError(
            f"model {name} has {more} input channels for what no text gives: call it from Python with a Conditioning"
        )
    if request.prompt is None:
        raise RequestError("prompt is missing: say what to draw")
    if request.label is not None:
        raise RequestError(f"label {show(request.label)}: model {name} knows no classes, give a prompt alone")
    return bundle.autoencoder, bundle.text


def _denoiser(model: DiffusionModel, texts: Texts, request: GenerateRequest, *, pixels: bool) -> Denoiser:
    """Guidance around the model; with switches in the prompts, that of the noise level's texts. What is known of
    pixels, that they lie in [-1, 1], is made true of every estimate."""
    scale = 1.0 if request.guidance is None else request.guidance
    interval = request.guidance_interval or (0.0, math.inf)
    space = Prediction.X0
    if request.compat == "diffusers":
        space = model.prediction  # where it measures what rescaling brings back
        scale = max(scale, 1.0)  # below 1 it does not guide at all
    parts = [
        (start, guided_model(model, cond, uncond, scale, request.rescale, interval, space))
        for start, cond, uncond in texts.conditionings
    ]
    denoiser = parts[0][1] if len(parts) == 1 else switch_at(parts[0][1], *parts[1:])
    return clipped(denoiser) if pixels else denoiser


def _decode(autoencoder: Autoencoder | None, height: int, width: int) -> Decode:
    """Decodes and cuts to the size asked for, the margins equal on both sides. Pixels are what they are, in colours."""
    if autoencoder is None:
        return lambda x: x.expand(-1, 3, -1, -1)

    def decode(latents: Tensor) -> Tensor:
        image = autoencoder.decode(latents)
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]

    return decode


def _level_notices(sigmas: Tensor, model: DiffusionModel) -> list[str]:
    """Levels that the network was not trained at: it is told the nearest timestep that it knows."""
    if model.prediction in (Prediction.EDM, Prediction.FLOW):
        return []  # their time is a formula, without a table to leave
    low, high = model.schedule.sigma_min, model.schedule.sigma_max
    outside = int(((sigmas > high * (1 + 1e-6)) | ((sigmas > 0) & (sigmas < low * (1 - 1e-6)))).sum())
    if not outside:
        return []
    return [
        f"{outside} of the {len(sigmas)} noise levels lie outside the model's {low:.4g} to {high:.4g}: there the "
        "network is told the nearest level that it knows"
    ]


def _idle_notices(request: GenerateRequest) -> list[str]:
    """Options that were given and have no effect, and pictures that another program would make otherwise."""
    notices = []
    if request.negative and request.guidance == 1:
        notices.append("guidance is 1: the negative prompt has no effect")
    if len(request.image_seeds()) > 1 and COMPAT[request.compat].whole_batch_noise:
        notices.append(
            f"{request.compat} draws the noise of a whole batch from one seed: only picture 0 is the same as there"
        )
    return notices
