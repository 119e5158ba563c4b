"""Text to image, steered by hints: ControlNets and T2I-Adapters (Zhang et al. 2023; Mou et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from langevin.checkpoints.steering import Steering
from langevin.diffusion.grids import level_at
from langevin.errors import RequestError
from langevin.images.hints import HINTS
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Adapter, Conditioning, Control
from langevin.networks.controlnet import ControlNet
from langevin.networks.t2i_adapter import T2IAdapter
from langevin.tasks.control_request import READY, ControlOptions, ControlRequest
from langevin.tasks.from_text import HoldsBundle, bundle_of, completed, parts_of, plan_pictures, run_numbers
from langevin.tasks.hints import hint_tensor
from langevin.tasks.options import nearest, show
from langevin.tasks.pictures import encode_picture, resized
from langevin.tasks.plan import Plan
from langevin.tasks.setup import Input, Setup


@dataclass(frozen=True, eq=False, kw_only=True)
class Steer:
    """One hint and what it acts through."""

    picture: Input
    """The hint, or with `options.kind` what it is made of."""
    options: ControlOptions = field(default_factory=ControlOptions)
    through: Steering | ControlNet | T2IAdapter | None = None
    """From `langevin.checkpoints.steering.load_steering`. None: the ControlNet inside the model's own file."""


def control(
    model: ModelBundle | HoldsBundle, request: ControlRequest, steers: Sequence[Steer], *, start: Input | None = None
) -> Plan:
    """Plans pictures from a text, steered by any number of hints at once: what they add is summed.

    start: a picture to begin from, as image to image does, with `request.strength`. Each hint's features are computed
    here, once for the whole run. Shares of the run become noise levels, so that they mean the same for every sampler.

    Raises RequestError where there is no hint, its kind is not known or the model cannot be steered.
    """
    bundle = bundle_of(model)
    autoencoder, text = parts_of(bundle, request)
    if not steers:
        raise RequestError("no control was given: give at least one hint")
    if autoencoder is None:
        raise RequestError(f"model {bundle.info.name} is of pixels: ControlNets and T2I-Adapters steer latent models")
    through = [_through(steer, bundle) for steer in steers]
    if request.guess and not any(isinstance(s.network, ControlNet) for s in through):
        raise RequestError("guess mode is of ControlNets, and none was given: leave it out")
    whole = completed(request, bundle)
    sigmas = run_numbers(bundle.diffusion, whole, None if start is None else request.strength).sigmas
    width, height = whole.width or 0, whole.height or 0
    controls: list[Control] = []
    adapters: list[Adapter] = []
    notices: list[str] = []
    for number, (steer, steering) in enumerate(zip(steers, through, strict=True)):
        first, last = thresholds(sigmas, steer.options, whole_steps=request.compat == "diffusers")
        if not any(last < level <= first for level in sigmas[:-1].tolist()):
            notices.append(f"control {number} acts at no step of this run: give it a wider window or more steps")
        hint, said = make_hint(f"control {number}", steer.picture.picture, steer.options.kind, width, height)
        notices += said
        network = steering.network
        channels = network.hint_channels if isinstance(network, ControlNet) else network.config.hint_channels
        pixels = hint_tensor(hint, width, height, autoencoder.downsampling, channels)
        pixels = pixels.to(bundle.diffusion.device, bundle.diffusion.dtype)
        strength = steer.options.strength
        with torch.no_grad():
            if isinstance(network, ControlNet):
                features = network.embed_hint(pixels)
                controls.append(
                    Control(network, features, request.guess, strength=strength, sigma_start=first, sigma_end=last)
                )
            else:
                adapters.append(Adapter(network(pixels), strength=strength, sigma_start=first, sigma_end=last))
    added = tuple(dict.fromkeys(s.addition for s in through if s.addition is not None))
    info = dataclasses.replace(bundle.info, additions=(*bundle.info.additions, *added))
    clean = None
    if start is not None:
        picture, said = resized("picture to start from", start.picture, width, height)
        notices += said
        clean = encode_picture(autoencoder, picture)
    return plan_pictures(
        dataclasses.replace(bundle, info=info),
        autoencoder,
        text,
        whole,
        Setup(
            beside=Conditioning(controls=tuple(controls), adapters=tuple(adapters)),
            start=clean,
            strength=request.strength,
            inputs=(*(steer.picture for steer in steers), *(() if start is None else (start,))),
            record={
                "task": "control",
                "controls": [_record(steer, s) for steer, s in zip(steers, through, strict=True)],
            },
            notices=tuple(notices),
        ),
    )


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
    fitted, notices = resized(role, picture, width, height)
    return (fitted if kind == READY else HINTS[kind](fitted)), notices


def _through(steer: Steer, bundle: ModelBundle) -> Steering:
    match steer.through:
        case Steering():
            return steer.through
        case None:
            if bundle.controlnet is None:
                raise RequestError(
                    f"the file of model {bundle.info.name} holds no ControlNet: give one for each control"
                )
            return Steering(bundle.controlnet)
        case network:
            return Steering(network)


def _record(steer: Steer, through: Steering) -> dict[str, Any]:
    kind = "t2i-adapter" if isinstance(through.network, T2IAdapter) else "controlnet"
    return {**steer.options.model_dump(mode="json"), "network": kind}
