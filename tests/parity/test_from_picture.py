"""Image to image and inpainting against diffusers' pipelines: one folder with random weights, the same picture files.

The preset draws what diffusers draws and in its order: from the autoencoder's posterior, then the first noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.checkpoints.loader import load_bundle
from langevin.diffusion.guidance import keep_known
from langevin.images.masks import mask_of_box
from langevin.images.pixels import to_tensor
from langevin.model.bundle import ModelBundle
from langevin.tasks import ImageToImageRequest, InpaintRequest, Plan, image_to_image, inpaint, run
from langevin.tasks.pictures import encode_sampled

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from tests.parity.folders import SCHEDULER, components  # noqa: E402  # which imports both

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOLERANCE = 1e-4
"""Largest absolute difference of latents, float32."""
SIZE = (48, 32)
MASK = mask_of_box(*SIZE, (11, 3, 37, 22))  # its borders lie within cells of the latents
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    with torch.random.fork_rng(), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[dict[str, Any], ModelBundle]]:
    """By input channels: the parts of a pipeline, and the same folder as we load it."""
    torch.manual_seed(0)
    found = {}
    for channels in (4, 9):
        parts: dict[str, Any] = components(tmp_path_factory.mktemp("tokenizer"), in_channels=channels)
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        folder = tmp_path_factory.mktemp(f"channels{channels}")
        kind = diffusers.StableDiffusionPipeline if channels == 4 else diffusers.StableDiffusionInpaintPipeline
        kind(**parts).save_pretrained(folder)
        found[channels] = (parts, load_bundle(Path(folder)))
    return found


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB").resize(SIZE, Image.Resampling.BICUBIC)


def theirs(kind: Any, parts: dict[str, Any], sampler: str, **options: Any) -> torch.Tensor:
    scheduler = getattr(diffusers, SAMPLERS[sampler]).from_config(SCHEDULER)
    pipeline = kind(**{**parts, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    images: torch.Tensor = pipeline(
        prompt="a red apple", negative_prompt="blurry", guidance_scale=4.0, output_type="latent",
        generator=[torch.Generator().manual_seed(11)], **options,
    ).images  # fmt: skip
    return images


def ours(plan: Plan) -> torch.Tensor:
    return run(plan).finish().latents


def asked(sampler: str, **options: Any) -> dict[str, Any]:
    basic = {"prompt": "a red apple", "negative": "blurry", "guidance": 4.0, "seed": 11, "compat": "diffusers"}
    return {**basic, "sampler": sampler, **options}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image(sampler: str, models: Any, picture: Image.Image) -> None:
    parts, bundle = models[4]
    for steps, strength in ((10, 0.29), (5, 0.6), (5, 1.0)):
        a = theirs(diffusers.StableDiffusionImg2ImgPipeline, parts, sampler, image=picture, strength=strength,
                   num_inference_steps=steps)  # fmt: skip
        request = ImageToImageRequest(**asked(sampler, steps=steps, strength=strength))
        b = ours(image_to_image(bundle, picture, request))
        assert float((a - b).abs().max()) <= TOLERANCE, (steps, strength)


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpainting(sampler: str, channels: int, models: Any, picture: Image.Image) -> None:
    parts, bundle = models[channels]
    assert bundle.info.task == ("text-to-image" if channels == 4 else "inpainting")
    mask = Image.fromarray(MASK, "L")
    for steps, strength in ((5, 0.6), (5, 1.0)):
        a = theirs(diffusers.StableDiffusionInpaintPipeline, parts, sampler, image=picture, mask_image=mask,
                   strength=strength, num_inference_steps=steps, width=SIZE[0], height=SIZE[1])  # fmt: skip
        request = InpaintRequest(**asked(sampler, steps=steps, strength=strength))
        b = ours(inpaint(bundle, picture, request, mask=mask))
        assert float((a - b).abs().max()) <= TOLERANCE, (steps, strength)


def test_noising_the_known_anew_is_keeping_it_in_x0_unless_the_sampler_adds_noise(
    models: Any, picture: Image.Image
) -> None:
    """From the same start: where the state was `known + sigma eps` it stays so without help."""
    bundle = models[4][1]
    mask = Image.fromarray(MASK, "L")
    small = torch.from_numpy(MASK)[None, None, ::8, ::8] > 0
    known = encode_sampled(bundle.autoencoder, to_tensor(picture), [11])
    for sampler, same in (("ddim", True), ("euler", True), ("dpmpp_2m", True), ("euler_ancestral", False)):
        again = inpaint(bundle, picture, InpaintRequest(**asked(sampler, steps=5, strength=0.8)), mask=mask)
        plain = image_to_image(bundle, picture, ImageToImageRequest(**asked(sampler, steps=5, strength=0.8)))
        kept = replace(plain, denoiser=keep_known(plain.denoiser, known, small.float()))
        gap = float(((ours(again) - ours(kept)) * small).abs().max())
        assert (gap <= TOLERANCE) == same, (sampler, gap)


def test_the_comparison_can_fail(models: Any, picture: Image.Image) -> None:
    a = ours(image_to_image(models[4][1], picture, ImageToImageRequest(**asked("euler", steps=5, strength=0.6))))
    for options in ({"seed": 12}, {"strength": 0.8}, {"compat": "langevin"}):
        request = ImageToImageRequest(**asked("euler", **{"steps": 5, "strength": 0.6, **options}))
        assert float((a - ours(image_to_image(models[4][1], picture, request))).abs().max()) > 10 * TOLERANCE
