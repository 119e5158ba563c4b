"""Image to image: where it starts, what it costs, and that a seed fixes the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.errors import RequestError
from langevin.images.pixels import to_tensor
from langevin.model.bundle import ModelBundle
from langevin.tasks import ImageToImageRequest, Plan, image_to_image, run
from langevin.tasks.pictures import encode_picture
from langevin.tasks.request import SamplerName


def picture(width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB").convert(mode)


def plan(bundle: ModelBundle, given: Image.Image | None = None, **options: Any) -> Plan:
    options = {"prompt": "a red apple", "seed": 7, "steps": 4, **options}
    return image_to_image(bundle, picture() if given is None else given, ImageToImageRequest(**options))


@pytest.mark.parametrize("sampler", [name for name in SamplerName.__args__ if name not in ("lcm", "restart")])  # type: ignore[attr-defined]
def test_every_sampler_starts_at_the_level_of_the_strength(tiny_bundle: ModelBundle, sampler: str) -> None:
    """The same level for the same strength, between the grid's levels too, and the picture noised to just there."""
    whole = plan(tiny_bundle, strength=1, sampler=sampler, schedule="karras").sigmas
    p = plan(tiny_bundle, strength=0.6, sampler=sampler, schedule="karras")
    assert float(p.sigmas[0]) == pytest.approx(float(whole[1] ** 0.4 * whole[2] ** 0.6), rel=1e-12)
    assert torch.equal(p.sigmas[1:], whole[2:])
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
    clean = encode_picture(tiny_bundle.autoencoder, to_tensor(picture()))
    torch.testing.assert_close(p.x, clean + noise * float(p.sigmas[0]), rtol=0, atol=0)


def test_little_strength_gives_the_picture_as_the_autoencoder_knows_it(tiny_bundle: ModelBundle) -> None:
    assert tiny_bundle.autoencoder is not None
    latents = run(plan(tiny_bundle, strength=0.01, guidance=1.0)).finish().latents
    clean = encode_picture(tiny_bundle.autoencoder, to_tensor(picture()))
    far = run(plan(tiny_bundle, strength=1.0, guidance=1.0)).finish().latents
    assert (latents - clean).abs().mean() < 0.1 * (far - clean).abs().mean()


@pytest.mark.parametrize(
    ("compat", "steps", "strength", "ran"),
    [("langevin", 10, 0.25, 3), ("diffusers", 10, 0.29, 2), ("a1111", 10, 0.5, 6), ("comfyui", 10, 0.5, 10)],
)
def test_presets_count_steps_by_their_own_rule_and_the_calls_are_told(
    tiny_bundle: ModelBundle, compat: str, steps: int, strength: float, ran: int
) -> None:
    p = plan(tiny_bundle, compat=compat, steps=steps, strength=strength, sampler="euler")
    assert len(p.sigmas) - 1 == p.calls == ran
    assert any(f"{ran} steps, {ran} network calls" in notice for notice in p.notices)


def test_the_size_is_the_pictures_and_any_mode_will_do(tiny_bundle: ModelBundle) -> None:
    for size, mode in (((30, 21), "RGBA"), ((9, 40), "P"), ((32, 32), "CMYK")):
        p = plan(tiny_bundle, picture(*size, mode), strength=0.3)
        assert (p.request.width, p.request.height) == size
        assert run(p).finish().images[0].size == size
    p = plan(tiny_bundle, picture(20, 40), width=32, height=32)
    assert "the picture: 20 x 40 pixels are stretched to 32 x 32" in p.notices


def test_what_a_camera_turned_is_turned_back(tiny_bundle: ModelBundle) -> None:
    given = picture(24, 32)
    turned = given.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    assert torch.equal(plan(tiny_bundle, turned).x, plan(tiny_bundle, given).x)


@pytest.mark.parametrize("compat", ["langevin", "diffusers"])
def test_each_variation_is_what_it_is_alone(tiny_bundle: ModelBundle, compat: str) -> None:
    options = {"compat": compat, "sampler": "euler_ancestral", "steps": 3, "strength": 0.9}
    several = run(plan(tiny_bundle, count=3, **options)).finish()
    for i, image in enumerate(several.images):
        alone = run(plan(tiny_bundle, seed=7 + i, **options)).finish().images[0]
        assert image.tobytes() == alone.tobytes()
    assert len({image.tobytes() for image in several.images}) == 3


def test_models_for_something_else_are_refused(make_bundle: Any) -> None:
    from dataclasses import replace

    bundle = make_bundle()
    for task in ("inpainting", "depth", "upscaling"):
        bundle.info = replace(bundle.info, task=task)
        with pytest.raises(RequestError, match=f"model tiny is for {task}: give a text-to-image model"):
            plan(bundle)
