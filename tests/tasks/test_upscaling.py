"""Upscaling and cascades with a tiny random upscaler of the published layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import MakeBundle

from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.tasks import GenerateRequest, UpscaleRequest, cascade, run, text_to_image, upscale
from langevin.tasks.upscaling import derived_seed


@pytest.fixture(scope="module")
def upscaler(make_upscaler: MakeBundle) -> ModelBundle:
    return make_upscaler()


@pytest.fixture(scope="module")
def small() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 10, 3), dtype=np.uint8), "RGB")


def request(**options: Any) -> UpscaleRequest:
    return UpscaleRequest(**{"prompt": "a red apple", "steps": 2, "seed": 3, "guidance": 2.0, **options})


def test_four_times_as_wide_and_high_and_the_noise_has_its_own_stream(
    upscaler: ModelBundle, small: Image.Image
) -> None:
    plan = upscale(upscaler, small, request())
    assert (plan.request.width, plan.request.height) == (40, 24) and plan.x.shape == (1, 4, 6, 10)
    assert plan.record["task"] == "upscaling" and plan.record["inputs"][0]["role"] == "image"
    result = run(plan).finish()
    assert result.images[0].size == (40, 24)
    again = run(upscale(upscaler, small, plan.request)).finish()  # a completed request stays what it is
    assert again.images[0].tobytes() == result.images[0].tobytes()
    for other in (request(noise_level=300), request(seed=4), request(prompt="a dog")):
        assert run(upscale(upscaler, small, other)).finish().images[0].tobytes() != result.images[0].tobytes()


def test_with_nothing_said_the_prompt_is_empty(upscaler: ModelBundle, small: Image.Image) -> None:
    assert upscale(upscaler, small, UpscaleRequest(steps=2, seed=1)).request.prompt == ""


def test_tiles_see_their_part_of_the_small_picture(upscaler: ModelBundle, small: Image.Image) -> None:
    """The left half of the left tile depends on that tile's part of the small picture alone."""
    wide = small.resize((16, 8))
    changed = wide.copy()
    changed.paste((0, 0, 0), (12, 0, 16, 8))  # only the last tile sees this
    plans = [upscale(upscaler, picture, request(tile=32, noise_level=0)) for picture in (wide, changed)]
    with torch.no_grad():
        first, second = (plan.denoiser(plan.x, 3.0).x0 for plan in plans)
    assert torch.equal(first[..., :8], second[..., :8])
    assert not torch.allclose(first[..., 8:], second[..., 8:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 1000}, "noise_level 1000 is out of bounds: this model's noise levels are 0 to 999"),
        ({"count": 2}, "2 pictures were asked for: one is upscaled at a time"),
        ({"width": 48}, "size 48 x None: of this picture the model makes 40 x 24"),
        ({"seamless": "x"}, "width 40 is not a multiple of 16"),
    ],
)
def test_what_cannot_be_upscaled_is_refused(
    upscaler: ModelBundle, small: Image.Image, options: dict[str, Any], message: str
) -> None:
    if "seamless" in options:
        small = small.resize((9, 6))
        message = "width 36 is not a multiple of 8"
    with pytest.raises(RequestError, match=message):
        upscale(upscaler, small, request(**options))


def test_other_models_are_refused(tiny_bundle: ModelBundle, upscaler: ModelBundle, small: Image.Image) -> None:
    with pytest.raises(RequestError, match="is for text-to-image: give an upscaler"):
        upscale(tiny_bundle, small, request())
    with pytest.raises(RequestError, match="is for upscaling: give a text-to-image model"):
        text_to_image(upscaler, GenerateRequest(prompt="x"))


def test_other_programs_noise_is_said(upscaler: ModelBundle, small: Image.Image) -> None:
    plan = upscale(upscaler, small, request(compat="comfyui"))
    assert "the noise on the small picture is our own: comfyui's conventions hold for all else" in plan.notices
    theirs = upscale(upscaler, small, request(compat="diffusers"))
    assert theirs.notices[0].startswith("10 x 6 is not a multiple of 4: diffusers would make")
    assert not upscale(upscaler, small, request()).notices


def test_a_cascade_is_its_two_parts(tiny_bundle: ModelBundle, upscaler: ModelBundle) -> None:
    made = cascade(tiny_bundle, upscaler, request(seed=None, seeds=(3, 4), width=16, height=8))
    assert [p.size for p in made.small] == [(16, 8)] * 2 and [p.size for p in made.images] == [(64, 32)] * 2
    small = run(text_to_image(tiny_bundle, GenerateRequest(
        prompt="a red apple", steps=2, seed=4, guidance=2.0, width=16, height=8
    ))).finish().images[0]  # fmt: skip
    assert small.tobytes() == made.small[1].tobytes()
    large = run(upscale(upscaler, small, request(seed=derived_seed(4, "upscaler")))).finish().images[0]
    assert large.tobytes() == made.images[1].tobytes()
