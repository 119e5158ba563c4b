"""Class labels to conditionings, for models of pixels."""

from __future__ import annotations

import math
from typing import cast

import torch

from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.networks.unet import UNetConfig
from langevin.tasks.options import nearest, show
from langevin.tasks.prompts import Texts
from langevin.tasks.request import GenerateRequest


def encode_label(bundle: ModelBundle, request: GenerateRequest) -> Texts:
    """What the network of a model without text is told: the class of a completed request and, for guidance, none.

    Raises RequestError for a text, a class that the model does not know, and guidance where there is nothing to guide.
    """
    name = bundle.info.name
    for option in ("prompt", "negative", "clip_skip", "weighting", "long"):
        if value := getattr(request, option):
            given = f"{option} {show(value)}: model {name} takes no text"
            raise RequestError(f"{given}, {'give a label' if bundle.classes else 'leave it out'}")
    count = _config(bundle).num_classes
    if count is None:
        if request.label is not None:
            raise RequestError(f"label {show(request.label)}: model {name} knows no classes, leave it out")
        cond = uncond = Conditioning()
    else:
        label = find_label(bundle, request.label)
        device = bundle.diffusion.device
        cond = Conditioning(labels=torch.tensor([label], device=device))
        uncond = Conditioning(labels=torch.tensor([len(bundle.classes)], device=device))
    if request.guidance != 1 and (count is None or count == len(bundle.classes)):
        raise RequestError(f"guidance {request.guidance}: model {name} was not trained without a class, give 1")
    return Texts(conditionings=[(math.inf, cond, uncond)], tokens={}, notices=())


def find_label(bundle: ModelBundle, label: str | int | None) -> int:
    """The number of a class. A text is a class's name or, where it is none, its number. Raises RequestError."""
    classes = bundle.classes
    known = f"give a number from 0 to {len(classes) - 1} or one of: {', '.join(classes)}"
    if label is None:
        raise RequestError(f"label is missing: model {bundle.info.name} draws classes, {known[:300]}")
    if isinstance(label, str):
        if label in classes:
            return classes.index(label)
        if not (label.isascii() and label.isdigit() and len(label) < 10):
            raise RequestError(f"label {show(label)} is not known: {known[:300]}{nearest(label, classes)}")
        label = int(label)
    if not 0 <= label < len(classes):
        raise RequestError(f"label {label} is out of bounds: {known[:300]}")
    return label


def pixel_channels(bundle: ModelBundle) -> int:
    """1 for grey pictures, 3 for colours. Raises RequestError for a network of others: nothing decodes them."""
    channels = _config(bundle).in_channels
    if channels not in (1, 3):
        raise RequestError(f"model {bundle.info.name} has {channels} channels and no autoencoder: give a whole model")
    return channels


def _config(bundle: ModelBundle) -> UNetConfig:
    return cast(UNetConfig, bundle.diffusion.network.config)
