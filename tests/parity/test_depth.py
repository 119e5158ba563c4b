"""A depth model against diffusers' pipeline: the same folder, picture and depth map, the same latents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from tests.parity.folders import components

from langevin.checkpoints.loader import load_bundle
from langevin.tasks import DepthRequest, depth_to_image, run

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
"""Largest absolute difference of latents, float32."""
WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(), torch.no_grad():
        yield


def test_same_latents(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth")
    parts = components(folder, in_channels=5)
    diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder / "model")
    bundle = load_bundle(folder / "model")
    assert bundle.info.task == "depth"
    pipeline = diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None, feature_extractor=None)
    pipeline.set_progress_bar_config(disable=True)
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    depth = random.integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    found = []
    for strength in (0.5, 0.8):
        theirs = pipeline(
            prompt="a red apple", negative_prompt="blurry", image=picture, strength=strength, num_inference_steps=6,
            depth_map=torch.from_numpy(depth.astype(np.float32))[None], guidance_scale=4.0, output_type="latent",
            generator=[torch.Generator().manual_seed(5)],
        ).images  # fmt: skip
        request = DepthRequest(
            prompt="a red apple", negative="blurry", steps=6, guidance=4.0, sampler="ddim", seed=5, strength=strength,
            compat="diffusers",
        )  # fmt: skip
        ours = run(depth_to_image(bundle, Image.fromarray(depth), request, image=picture)).finish().latents
        assert ours.shape == theirs.shape == (1, 4, HEIGHT // 8, WIDTH // 8)
        assert float((ours - theirs).abs().max()) <= TOLERANCE
        found.append(ours)
    assert float((found[0] - found[1]).abs().max()) > 100 * TOLERANCE
