"""Large pictures in two passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.diffusion.grids import level_at
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.tasks import GenerateRequest, LargeRequest, Run, large, run, text_to_image
from langevin.tasks.pictures import encode_picture
from langevin.tasks.two_passes import enlarged


def request(**options: Any) -> LargeRequest:
    return LargeRequest(**{"prompt": "a red apple", "steps": 4, "seed": 3, "guidance": 1.0, "hires": 2.0, **options})


def test_the_second_pass_starts_from_the_first_ones_picture(tiny_bundle: ModelBundle) -> None:
    seen: list[Run] = []

    def follow(running: Run) -> None:
        running.finish()
        seen.append(running)

    plan = large(tiny_bundle, request(width=32, height=24), follow)
    small = run(
        text_to_image(
            tiny_bundle, GenerateRequest(prompt="a red apple", steps=4, seed=3, guidance=1.0, width=16, height=12)
        )
    ).finish()
    assert seen[0].pictures[0].tobytes() == small.images[0].tobytes()
    clean = encode_picture(tiny_bundle.autoencoder, small.images[0].resize((32, 24), Image.Resampling.LANCZOS))
    noise = (plan.x - clean) / float(plan.sigmas[0])
    assert plan.x.shape == (1, 4, 6, 8) and float(plan.sigmas[0]) < 3
    assert 0.8 < noise.std() < 1.2
    own = text_to_image(tiny_bundle, request(width=32, height=24))
    assert float(plan.sigmas[0]) == pytest.approx(level_at(own.sigmas, 0.5))
    assert not torch.allclose(noise, own.noise.initial(), atol=0.1)  # another stream than the first pass's
    assert plan.record["task"] == "large" and plan.record["first_pass"] == [16, 12]
    assert plan.notices[-1].startswith("first pass 16 x 12, then 32 x 24 in 2 steps from sigma")


def test_pictures_do_not_depend_on_their_batch_and_a_completed_request_stays(tiny_bundle: ModelBundle) -> None:
    both = run(large(tiny_bundle, request(count=2, width=32, height=32))).finish()
    assert both.seeds == (3, 4)
    manifest = both.manifests[1]["request"]
    assert (manifest["seed"], manifest["hires"], manifest["width"]) == (4, 2.0, 32)
    alone = run(large(tiny_bundle, LargeRequest(**manifest))).finish()
    assert alone.images[0].tobytes() == both.images[1].tobytes()


@pytest.mark.parametrize(
    ("options", "first", "whole"),
    [
        ({}, (32, 32), (64, 64)),
        ({"hires": None}, (32, 32), (64, 64)),
        ({"hires": 1.5}, (32, 32), (48, 48)),
        ({"hires": None, "width": 128, "height": 32}, (64, 16), (128, 32)),
        ({"hires": None, "width": 64}, (32, 32), (64, 64)),
        ({"width": 50, "height": 70}, (24, 36), (50, 70)),
        ({"seamless": "x", "width": 48, "height": 40}, (24, 20), (48, 40)),
    ],
)
def test_sizes(
    tiny_bundle: ModelBundle, options: dict[str, Any], first: tuple[int, int], whole: tuple[int, int]
) -> None:
    plan = large(tiny_bundle, request(steps=2, **options))
    assert plan.record["first_pass"] == list(first)
    assert (plan.request.width, plan.request.height) == whole


def test_latents_may_be_enlarged_instead_and_options_combine(tiny_bundle: ModelBundle) -> None:
    options = {"hires_upscale": "latent", "width": 32, "height": 32, "seamless": "both", "tiled_decode": "yes"}
    latent = run(large(tiny_bundle, request(**options, tile=24))).finish().images[0]
    assert latent.size == (32, 32)
    assert latent.tobytes() != run(large(tiny_bundle, request(**options))).finish().images[0].tobytes()


def test_where_the_picture_wraps_so_does_its_enlargement() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), "RGB")
    moved = Image.fromarray(np.roll(np.asarray(picture), (3, 2), (0, 1)), "RGB")
    plain = enlarged(picture, 20, 12)
    assert plain.tobytes() == picture.resize((20, 12), Image.Resampling.LANCZOS).tobytes()
    both = np.asarray(enlarged(moved, 20, 12, x=True, y=True))
    assert np.array_equal(both, np.roll(np.asarray(enlarged(picture, 20, 12, x=True, y=True)), (6, 5), (0, 1)))
    assert not np.array_equal(np.asarray(enlarged(picture, 20, 12, x=True)), np.asarray(plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hires": None, "width": 16, "height": 32}, "16 x 32 is not larger than the model's 32 x 32"),
        ({"hires": 1.0}, "hires 1.0 is out of bounds"),
        ({"hires_strength": 0.0}, "hires_strength 0.0 is out of bounds: give 0.01 to 1"),
        ({"prompt": None}, "prompt is missing"),
    ],
)
def test_what_cannot_be_is_refused(tiny_bundle: ModelBundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        large(tiny_bundle, request(**options))
