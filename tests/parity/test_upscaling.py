"""Whole upscaling runs against diffusers' StableDiffusionUpscalePipeline: one folder with random weights, one seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.checkpoints.loader import load_bundle
from langevin.model.tokenizer import _standard_vocabulary
from langevin.tasks import UpscaleRequest, run, upscale

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers on numpy 2

PUBLISHED = {
    "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
"""The schedule of Stable Diffusion 2's x4 upscaler, of its latents and of its small pictures."""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with torch.random.fork_rng(), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    words = tmp_path_factory.mktemp("tokenizer")
    vocabulary, merges = _standard_vocabulary()
    (words / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (words / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges), encoding="utf-8")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**names, "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (words / "tokenizer_config.json").write_text(json.dumps(config))
    return diffusers.StableDiffusionUpscalePipeline(
        unet=diffusers.UNet2DConditionModel(
            in_channels=7, block_out_channels=(32, 64), layers_per_block=1, sample_size=8, cross_attention_dim=32,
            attention_head_dim=8, num_class_embeds=1000, only_cross_attention=[True, False],
            use_linear_projection=True, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(32, 32, 32), layers_per_block=1, latent_channels=4, scaling_factor=0.08333,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                bos_token_id=49406, eos_token_id=49407,
            )
        ),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(words),
        low_res_scheduler=diffusers.DDPMScheduler.from_config(PUBLISHED),
        scheduler=diffusers.DDIMScheduler.from_config(PUBLISHED, prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, watermarker=None, max_noise_level=350,
    )  # fmt: skip


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_same_latents_and_pictures(pipeline: Any, tmp_path: Path, prediction: str) -> None:
    """With a solver that draws noise at each step too: the small picture's noise, the latent's and the steps' are draws
    of one stream."""
    kind = {"prediction_type": prediction}
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(PUBLISHED, **kind)
    if prediction == "epsilon":
        # A network of random noise lets latents grow, and their rounding with them: one that says little does not.
        pipeline.unet.conv_out.weight.mul_(0.05)
    pipeline.save_pretrained(tmp_path / "model")
    bundle = load_bundle(tmp_path / "model")
    assert bundle.info.task == "upscaling" and bundle.info.prediction.value in ("v", "epsilon")
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8), "RGB")
    pipeline.set_progress_bar_config(disable=True)
    for sampler, name, level in (
        ("ddim", "DDIMScheduler", 20),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", 300),
    ):
        scheduler = getattr(diffusers, name).from_config(PUBLISHED, **kind)
        pipeline.scheduler = scheduler
        told = {"num_inference_steps": 3, "guidance_scale": 4.0, "negative_prompt": "blurry", "noise_level": level}
        theirs = pipeline(
            "a red apple", small, **told, generator=torch.Generator().manual_seed(11), output_type="latent"
        ).images
        request = UpscaleRequest(
            prompt="a red apple", negative="blurry", steps=3, guidance=4.0, seed=11, noise_level=level,
            sampler=sampler, compat="diffusers",
        )  # fmt: skip
        result = run(upscale(bundle, small, request)).finish()
        assert result.latents.shape == (1, 4, 8, 12)
        assert float((result.latents - theirs).abs().max()) <= 1e-4, sampler
        picture = pipeline.vae.decode(theirs / 0.08333).sample
        expected = ((picture[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        assert result.images[0].size == (48, 32)
        assert np.abs(np.asarray(result.images[0], float) - expected).max() <= 1
