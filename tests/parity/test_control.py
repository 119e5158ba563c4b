"""ControlNets and T2I-Adapters against diffusers' pipelines: the same folders, the same hints, the same latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tests.networks.network_pairs import randomise
from tests.parity.folders import SCHEDULER, UNET, components
from torch import Tensor

from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.steering import add_steering
from langevin.model.bundle import ModelBundle
from langevin.tasks import run
from langevin.tasks.control_request import ControlOptions, ControlRequest
from langevin.tasks.controlling import control

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
"""Largest absolute difference of latents, float32."""
PROMPT, NEGATIVE, SEED, GUIDANCE, STEPS, SIZE = "a red apple", "blurry", 3, 4.0, 5, (64, 48)


class Both(NamedTuple):
    parts: dict[str, Any]
    networks: list[Any]
    """diffusers' ControlNets, two, then its T2I-Adapter and a ControlNet whose residuals are pooled."""
    bundle: ModelBundle
    steering: list[Any]
    """The same as we load them."""
    hints: list[Image.Image]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("control")
    parts = components(folder)
    diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder / "model")
    networks = [*(diffusers.ControlNetModel(**UNET) for _ in range(2)), diffusers.T2IAdapter(channels=[32, 64])]
    networks.append(diffusers.ControlNetModel(**UNET, global_pool_conditions=True))
    bundle = load_bundle(folder / "model")
    steered = bundle
    for i, network in enumerate(networks):
        randomise(network, i)
        network.save_pretrained(folder / str(i))
        steered = add_steering(steered, folder / str(i))
    random = np.random.default_rng(0)
    hints = [Image.fromarray(random.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)) for _ in range(2)]
    return Both(parts, networks, bundle, list(steered.steering), hints)


def theirs(both: Both, which: list[int], sampler: str = "DDIMScheduler", **options: Any) -> Tensor:
    networks = [both.networks[i] for i in which]
    beside = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts = {**both.parts, "scheduler": getattr(diffusers, sampler)(**_known(sampler))}
    if which[0] != 2:
        network = networks[0] if len(networks) == 1 else networks
        pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=network, **beside)
    else:
        pipeline = diffusers.StableDiffusionAdapterPipeline(**parts, adapter=networks[0], **beside)
    pipeline.set_progress_bar_config(disable=True)
    hints = both.hints[: len(which)]
    latents: Tensor = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, image=hints if len(hints) > 1 else hints[0],
        num_inference_steps=STEPS, width=SIZE[0], height=SIZE[1], output_type="latent",
        generator=[torch.Generator().manual_seed(SEED)], **{"guidance_scale": GUIDANCE, **options},
    ).images  # fmt: skip
    return latents


def _known(sampler: str) -> dict[str, Any]:
    cls = getattr(diffusers, sampler)
    return cls.extract_init_dict(dict(SCHEDULER))[0]  # type: ignore[no-any-return]


def ours(both: Both, which: list[int], options: list[ControlOptions], **request: Any) -> Tensor:
    values = {"prompt": PROMPT, "negative": NEGATIVE, "guidance": GUIDANCE, "seed": SEED, "sampler": "ddim", **request}
    asked = ControlRequest(
        **values, steps=STEPS, width=SIZE[0], height=SIZE[1], compat="diffusers", controls=tuple(options)
    )
    bundle = dataclasses.replace(both.bundle, steering=tuple(both.steering[i] for i in which))
    return run(control(bundle, both.hints[: len(which)], asked)).finish().latents


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


CASES: dict[str, tuple[list[int], dict[str, Any], list[dict[str, float]], dict[str, Any]]] = {
    "one": ([0], {"controlnet_conditioning_scale": 0.8}, [{"strength": 0.8}], {}),
    "two": ([0, 1], {"controlnet_conditioning_scale": [0.8, 0.3]}, [{"strength": 0.8}, {"strength": 0.3}], {}),
    "guess": ([0], {"guess_mode": True}, [{}], {"guess": True}),
    "two guess": ([0, 1], {"guess_mode": True}, [{}, {}], {"guess": True}),
    "guess, unguided": ([0], {"guess_mode": True, "guidance_scale": 1.0}, [{}], {"guess": True, "guidance": 1.0}),
    "window": (
        [0], {"control_guidance_start": 0.2, "control_guidance_end": 0.7}, [{"start": 0.2, "end": 0.7}], {},
    ),
    "two windows": (
        [0, 1],
        {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.6, 1.0]},
        [{"end": 0.6}, {"start": 0.5}],
        {},
    ),
    "pooled": ([3], {"controlnet_conditioning_scale": 0.8}, [{"strength": 0.8}], {}),
    "adapter": ([2], {"adapter_conditioning_scale": 0.7}, [{"strength": 0.7}], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_latents(case: str, both: Both) -> None:
    which, options, how, request = CASES[case]
    found = ours(both, which, [ControlOptions(**values) for values in how], **request)
    assert gap(theirs(both, which, **options), found) <= TOLERANCE
    plain = ours(both, which, [ControlOptions(strength=0.0) for _ in which], **request)
    assert gap(plain, found) > 100 * TOLERANCE


def test_same_latents_by_another_solver(both: Both) -> None:
    a = theirs(both, [0], "EulerDiscreteScheduler")
    assert gap(a, ours(both, [0], [ControlOptions()], sampler="euler")) <= TOLERANCE
