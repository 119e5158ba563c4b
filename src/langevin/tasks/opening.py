"""Loads the model that options name."""

from __future__ import annotations

from typing import Literal, assert_never

import torch

from langevin.checkpoints.additions import add_embedding, add_lora, set_autoencoder, split_embedding, split_lora
from langevin.checkpoints.loader import load_bundle
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.tasks.request import ModelOptions


def open_bundle(options: ModelOptions) -> ModelBundle:
    """The model, ready to run. Raises RequestError where the device is not here, CheckpointError as the loader does."""
    check_device(options.device)
    bundle = load_bundle(
        options.model,
        dtype=options.precision,
        device=options.device,
        prediction=options.prediction,
        config=options.config,
        ema=_ema(options.ema),
        allow_pickle=options.allow_pickle,
        revision=options.revision,
    )
    return with_additions(bundle, options)


def with_additions(bundle: ModelBundle, options: ModelOptions) -> ModelBundle:
    """The model with the autoencoder, LoRA and embedding files that the options name, in their order."""
    if options.vae is not None:
        bundle = set_autoencoder(bundle, options.vae, allow_pickle=options.allow_pickle)
    for file in options.lora:
        bundle = add_lora(bundle, *split_lora(file))
    for file in options.embedding:
        bundle = add_embedding(bundle, *split_embedding(file))
    return bundle


def check_device(device: str) -> None:
    """Raises RequestError unless numbers can be computed on `device` here."""
    try:
        torch.zeros(1, device=device).item()  # the "meta" device makes tensors, but without numbers
    except (RuntimeError, AssertionError, NotImplementedError):  # torch says it in each of these ways
        raise RequestError(
            f"device {device!r} is not available with torch {torch.__version__} here: use cpu or another"
        ) from None


def _ema(choice: Literal["auto", "yes", "no"]) -> bool | Literal["auto"]:
    match choice:
        case "auto":
            return "auto"
        case "yes":
            return True
        case "no":
            return False
        case _:
            assert_never(choice)
