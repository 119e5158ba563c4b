"""Text to image, steered by pictures: ControlNets and T2I-Adapters by hints (Zhang et al. 2023; Mou et al. 2023),
IP-Adapters by pictures that are prompts (Ye et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from langevin.diffusion.grids import level_at
from langevin.errors import RequestError
from langevin.images.hints import HINTS
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Adapter, Conditioning, Control
from langevin.networks.controlnet import ControlNet
from langevin.networks.t2i_adapter import T2IAdapter
from langevin.tasks.beginning import sized, with_beginning
from langevin.tasks.control_request import READY, ControlOptions, ControlRequest
from langevin.tasks.from_picture import with_start_notice
from langevin.tasks.from_text import HoldsBundle, bundle_of, completed, parts_of, plan_pictures, run_numbers
from langevin.tasks.hints import hint_tensor
from langevin.tasks.image_prompts import image_prompts
from langevin.tasks.options import nearest, show
from langevin.tasks.pictures import Given, as_input, resized
from langevin.tasks.plan import Plan
from langevin.tasks.setup import Setup


def control(
    model: ModelBundle | HoldsBundle,
    pictures: Sequence[Given],
    request: ControlRequest,
    *,
    image: Given | None = None,
    prompts: Sequence[Given] = (),
) -> Plan:
    """Plans pictures from a text, steered by any number of hints at once: what they add is summed.

    pictures: the hints, or with the kinds in `request.controls` what they are made of. Picture i acts through network i
    of those that were put beside the model (`Model.with_controlnet`), or each through the ControlNet in the model's own
    file. image: a picture to begin from, as image to image does, with `request.strength`; its size is then the default.
    prompts: pictures that say what to draw, as the text does; picture i through IP-Adapter i beside the model
    (`Model.with_ip_adapter`), with strength i of `request.image_strengths`.

    Each hint's features, and each prompt's tokens, are computed here, once for the whole run. Shares of the run become
    noise levels, so that they mean the same for every sampler. Raises RequestError where there is neither hint nor
    picture, a hint's kind is not known or the model cannot be steered.
    """
    bundle = bundle_of(model)
    autoencoder, text = parts_of(bundle, request)
    if autoencoder is None:
        raise RequestError(f"model {bundle.info.name} is of pixels: ControlNets and adapters steer latent models")
    if not pictures and not prompts:
        raise RequestError("no control was given: give at least one hint, or a picture as a prompt")
    networks = _networks(bundle, len(pictures))
    if request.guess and not any(isinstance(network, ControlNet) for network in networks):
        raise RequestError("guess mode is of ControlNets, and none was given: leave it out")
    every = request.controls or tuple(ControlOptions() for _ in pictures)
    if len(every) != len(pictures):
        raise RequestError(f"{len(every)} controls for {len(pictures)} pictures: give options for each, or for none")
    given = [as_input(f"control {i}", picture) for i, picture in enumerate(pictures)]
    shown = [as_input(f"image prompt {i}", picture) for i, picture in enumerate(prompts)]
    strengths = request.image_strengths or tuple(1.0 for _ in shown)
    images = image_prompts(bundle, shown, strengths)
    begun = None if image is None else as_input("image", image)
    request = completed(sized(request.changed(controls=every, image_strengths=strengths), begun), bundle)
    sigmas = run_numbers(bundle.diffusion, request, None if begun is None else request.strength).sigmas
    width, height = request.width or 0, request.height or 0
    controls: list[Control] = []
    adapters: list[Adapter] = []
    notices: list[str] = []
    for asked, network, options in zip(given, networks, every, strict=True):
        first, last = thresholds(sigmas, options, whole_steps=request.compat == "diffusers")
        if not any(last < level <= first for level in sigmas[:-1].tolist()):
            notices.append(f"{asked.role} acts at no step of this run: give it a wider window or more steps")
        hint, said = make_hint(asked.role, asked.picture, options.kind, width, height)
        notices += said
        channels = network.hint_channels if isinstance(network, ControlNet) else network.config.hint_channels
        pixels = hint_tensor(hint, width, height, autoencoder.downsampling, channels)
        pixels = pixels.to(bundle.diffusion.device, bundle.diffusion.dtype)
        when = {"strength": options.strength, "sigma_start": first, "sigma_end": last}
        with torch.no_grad():
            if isinstance(network, ControlNet):
                # Where pooled residuals went with the negative prompt too, guidance would take them out again.
                guess = request.guess or network.pooled
                controls.append(Control(network, network.embed_hint(pixels), guess=guess, rows=None, **when))
            else:
                adapters.append(Adapter(network(pixels), **when))
    setup = Setup(
        beside=Conditioning(controls=tuple(controls), adapters=tuple(adapters)),
        images=images,
        inputs=(*given, *shown),
        record={"task": "control"},
        notices=tuple(notices),
    )
    if begun is None:
        return plan_pictures(bundle, autoencoder, text, request, setup)
    setup = with_beginning(setup, autoencoder, begun, request)
    return with_start_notice(plan_pictures(bundle, autoencoder, text, request, setup), request.strength)


def thresholds(sigmas: Tensor, options: ControlOptions, *, whole_steps: bool = False) -> tuple[float, float]:
    """(sigma_start, sigma_end): the noise levels between which a control acts, sigma_end < sigma <= sigma_start.

    whole_steps: as diffusers counts, a step acts that lies within the window as a whole; else where it begins decides.
    """
    steps = len(sigmas) - 1
    end = math.floor(options.end * steps + 1e-9) / steps if whole_steps else options.end
    first = math.inf if options.start == 0 else level_at(sigmas, options.start)
    return first, 0.0 if end == 1 else level_at(sigmas, end)


def make_hint(
    role: str, picture: Image.Image, kind: str, width: int, height: int
) -> tuple[Image.Image, tuple[str, ...]]:
    """The hint of a picture at the size of what is made, and what to say of it. RequestError for an unknown kind."""
    if kind != READY and kind not in HINTS:
        known = ", ".join([READY, *HINTS])
        raise RequestError(f"control {show(kind)} is not known: use {known}{nearest(kind, [READY, *HINTS])}")
    fitted, notices = resized(role, ImageOps.exif_transpose(picture), width, height)
    return (fitted if kind == READY else HINTS[kind](fitted)), notices


def _networks(bundle: ModelBundle, count: int) -> Sequence[ControlNet | T2IAdapter]:
    """What each of `count` hints acts through."""
    if bundle.steering:
        if len(bundle.steering) != count:
            raise RequestError(
                f"{count} controls and {len(bundle.steering)} networks to act through: give each its own (--controlnet)"
            )
        return bundle.steering
    if count and bundle.controlnet is None:
        raise RequestError(
            f"the file of model {bundle.info.name} holds no ControlNet: name one for each control (--controlnet)"
        )
    return [bundle.controlnet] * count if bundle.controlnet is not None else []
