"""IP-Adapters against diffusers' pipelines: the same files, the same pictures, the same latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.networks.network_pairs import randomise
from tests.parity.folders import UNET, components
from torch import Tensor

from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.steering import add_ip_adapter, add_steering
from langevin.model.bundle import ModelBundle
from langevin.networks.ip_adapter import IPAdapter, IPAdapterConfig, Kind
from langevin.tasks import run
from langevin.tasks.control_request import ControlOptions, ControlRequest
from langevin.tasks.controlling import control
from langevin.tasks.image_prompts import clip_pixels

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
"""Largest absolute difference of latents, float32."""
PROMPT, NEGATIVE, SEED, GUIDANCE, STEPS, SIZE = "a red apple", "blurry", 3, 4.0, 3, (48, 32)
LAYERS = (32, 32, 32, 32, 32, 64)
"""Of the way down, of the way up, and of the middle."""
ENCODER, VECTOR, STATES = 32, 24, 40
"""Pixels of its pictures; channels of its vector and of its states."""


class Both(NamedTuple):
    parts: dict[str, Any]
    bundle: ModelBundle
    folder: Path
    pictures: list[Image.Image]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with torch.random.fork_rng(), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("image-prompts")
    parts = components(folder)
    diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder / "model")
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=STATES, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=ENCODER,
            patch_size=8, projection_dim=VECTOR, hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    randomise(encoder, 1)
    encoder.save_pretrained(folder / "image_encoder")
    processor = transformers.CLIPImageProcessor(size=ENCODER, crop_size=ENCODER)
    parts |= {"image_encoder": encoder, "feature_extractor": processor}
    for i, kind in enumerate(("linear", "plus", "full")):
        network = IPAdapter(config(kind))
        randomise(network, i)
        save_file({n: t.contiguous() for n, t in network.state_dict().items()}, folder / f"{kind}.safetensors")
    random = np.random.default_rng(0)
    shapes = [(50, 41, 3), (ENCODER, 70, 3)]
    pictures = [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    return Both(parts, load_bundle(folder / "model"), folder, pictures)


def config(kind: Kind) -> IPAdapterConfig:
    shape: dict[str, Any] = {"context_channels": 32, "layers": LAYERS, "kind": kind}
    if kind == "linear":
        return IPAdapterConfig(**shape, image_channels=VECTOR)
    if kind == "full":
        return IPAdapterConfig(**shape, image_channels=STATES)
    return IPAdapterConfig(**shape, image_channels=STATES, tokens=6, width=48, heads=2)


def theirs(both: Both, kinds: list[str], strengths: list[float], *, steered: Any = None) -> Tensor:
    parts = {**both.parts, "safety_checker": None, "requires_safety_checker": False}
    parts["unet"] = diffusers.UNet2DConditionModel.from_pretrained(both.folder / "model" / "unet")
    more: dict[str, Any] = {}
    if steered is None:
        pipeline = diffusers.StableDiffusionPipeline(**parts)
    else:
        pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=steered)
        more["image"] = both.pictures[0].resize(SIZE)
    pipeline.set_progress_bar_config(disable=True)
    names = [f"{kind}.safetensors" for kind in kinds]
    pipeline.load_ip_adapter(str(both.folder), subfolder="", weight_name=names, local_files_only=True)
    pipeline.set_ip_adapter_scale(strengths)
    latents: Tensor = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, num_inference_steps=STEPS, width=SIZE[0],
        height=SIZE[1], output_type="latent", generator=[torch.Generator().manual_seed(SEED)],
        ip_adapter_image=both.pictures[: len(kinds)], **more,
    ).images  # fmt: skip
    return latents


def ours(bundle: ModelBundle, both: Both, kinds: list[str], strengths: list[float]) -> Tensor:
    for kind in kinds:
        bundle = add_ip_adapter(bundle, both.folder / f"{kind}.safetensors")
    request = ControlRequest(
        prompt=PROMPT, negative=NEGATIVE, guidance=GUIDANCE, seed=SEED, sampler="ddim", steps=STEPS, width=SIZE[0],
        height=SIZE[1], compat="diffusers", image_strengths=tuple(strengths),
        controls=tuple(ControlOptions() for _ in bundle.steering),
    )  # fmt: skip
    hints = [both.pictures[0].resize(SIZE)][: len(bundle.steering)]
    return run(control(bundle, hints, request, prompts=both.pictures[: len(kinds)])).finish().latents


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    ("kinds", "strengths"),
    [(["linear"], [0.7]), (["plus"], [1.0]), (["full"], [0.5]), (["linear", "plus"], [0.6, 0.3])],
    ids=["linear", "plus", "full", "two"],
)
def test_same_latents(kinds: list[str], strengths: list[float], both: Both) -> None:
    found = ours(both.bundle, both, kinds, strengths)
    assert gap(theirs(both, kinds, strengths), found) <= TOLERANCE
    assert gap(ours(both.bundle, both, kinds, [0.0] * len(kinds)), found) > 100 * TOLERANCE


def test_same_latents_with_a_controlnet(both: Both) -> None:
    """Which is told of the text alone."""
    network = diffusers.ControlNetModel(**UNET)
    randomise(network, 5)
    network.save_pretrained(both.folder / "controlnet")
    steered = add_steering(both.bundle, both.folder / "controlnet")
    found = ours(steered, both, ["linear"], [0.7])
    assert gap(theirs(both, ["linear"], [0.7], steered=network), found) <= TOLERANCE
    without = dataclasses.replace(steered, steering=())
    assert gap(ours(without, both, ["linear"], [0.7]), found) > 100 * TOLERANCE


@pytest.mark.parametrize("size", [(50, 41), (32, 32), (20, 90), (133, 64)])
def test_same_pixels(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessor(size=ENCODER, crop_size=ENCODER, do_normalize=False)
    expected = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
    assert gap(expected, clip_pixels(Image.fromarray(pixels), ENCODER)) < 1e-6
