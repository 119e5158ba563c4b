"""DDIM inversion against diffusers' DDIMInverseScheduler: the same U-Net, walked by each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.tasks.test_inversion import picture
from torch import Tensor

from langevin.model.bundle import ModelBundle
from langevin.tasks import InvertRequest, invert

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
PUBLISHED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
             "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
"""The scheduler configuration published with Stable Diffusion 1.5, as far as this scheduler has it."""
STEPS = 6
_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}


def calm(make_bundle: Any, prediction: str) -> ModelBundle:
    """Random weights at full strength give latents whose rounding alone is near the tolerance."""
    bundle: ModelBundle = make_bundle(prediction)
    last: Any = bundle.diffusion.network.out[2]  # type: ignore[index]
    last.weight.mul_(0.2)
    return bundle


@torch.no_grad()
def theirs(bundle: ModelBundle, prediction: str, *, told_the_start: bool, **config: Any) -> Tensor:
    """The loop of diffusers' inversion pipelines, without guidance: z at the last timestep."""
    assert bundle.text is not None and bundle.autoencoder is not None
    scheduler = diffusers.DDIMInverseScheduler(**{**PUBLISHED, **config}, prediction_type=_TYPES[prediction])
    scheduler.set_timesteps(STEPS)
    context = bundle.text.encode(["a red apple"], weighting="none").context
    from langevin.images.pixels import to_tensor

    z: Tensor = bundle.autoencoder.encode(to_tensor(picture()))
    stride = 1000 // STEPS
    for t in scheduler.timesteps.tolist():
        told = max(t - stride, 0) if told_the_start else t
        out = bundle.diffusion.network(z, torch.tensor([float(told)]), context=context)
        z = scheduler.step(out, t, z).prev_sample
    return z


def ours(bundle: ModelBundle, **options: Any) -> tuple[Tensor, Tensor]:
    """z at the grid's first level, and the grid."""
    request = InvertRequest(prompt="a red apple", inversion="ddim", **options)
    inverted = invert(bundle, picture(), request)
    return inverted.x / math.sqrt(1 + float(inverted.sigmas[0]) ** 2), inverted.sigmas


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_compat_diffusers_is_their_scheduler(make_bundle: Any, prediction: str) -> None:
    bundle = calm(make_bundle, prediction)
    a = theirs(bundle, prediction, told_the_start=False)
    b, sigmas = ours(bundle, steps=STEPS, compat="diffusers")
    schedule = bundle.diffusion.schedule
    assert schedule.t(sigmas).tolist() == [831, 665, 499, 333, 167, 1, 0]
    assert float((a - b).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_our_own_differs_by_what_the_network_is_told_alone(make_bundle: Any, prediction: str) -> None:
    """On their levels: told the timestep of the level that a step starts from, their scheduler walks as ours does."""
    bundle = calm(make_bundle, prediction)
    _, sigmas = ours(bundle, steps=STEPS, compat="diffusers")
    a = theirs(bundle, prediction, told_the_start=True)
    b, same = ours(bundle, sigmas=sigmas.tolist(), weighting="none")
    assert torch.equal(same, sigmas)
    assert float((a - b).abs().max()) <= TOLERANCE
    assert float((theirs(bundle, prediction, told_the_start=False) - b).abs().max()) > 10 * TOLERANCE
