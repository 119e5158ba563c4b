"""What tests of several folders share: whole models, tiny and random, made in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from langevin.checkpoints import original
from langevin.checkpoints.config import UPSCALER
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.text import TextEncoder
from langevin.model.tokenizer import Tokenizer
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.clip import ClipText, ClipTextConfig
from langevin.networks.unet import UNet, UNetConfig

MakeBundle = Callable[..., ModelBundle]

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # The workers share the cores, and the processes that tests start share their worker's.
    _threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(_threads)
    torch.set_num_threads(_threads)


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Weights that make every part matter: layers that start at zero would hide the rest."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red apple", "a blue house", "a cat and a dog"] * 3, 520)


@pytest.fixture(scope="session")
def make_bundle(tokenizer: Tokenizer) -> MakeBundle:
    """make_bundle(prediction=..., dtype=...): a whole text-to-image model with f4 latents, about 0.5 M parameters."""

    def make(prediction: str = "epsilon", dtype: torch.dtype = torch.float32, seed: int = 0) -> ModelBundle:
        unet = UNet(
            UNetConfig(
                model_channels=32,
                channel_mult=(1, 2),
                num_res_blocks=1,
                attention_levels=(True, False),
                num_heads=2,
                context_channels=32,
            )
        )
        vae = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1))
        clip = ClipText(
            ClipTextConfig(
                vocabulary=len(tokenizer),
                width=32,
                layers=2,
                heads=2,
                mlp_width=64,
                positions=tokenizer.max_length,
                eos_token=tokenizer.eos,
            )
        )
        for i, network in enumerate((unet, vae, clip)):
            randomise(network, 10 * seed + i).to(dtype)
        return ModelBundle(
            diffusion=DiffusionModel(unet, NoiseSchedule.scaled_linear(), Prediction(prediction)),
            autoencoder=Autoencoder(vae, 0.18215),
            text=TextEncoder(clip, tokenizer),
            info=CheckpointInfo(
                name="tiny",
                prediction=Prediction(prediction),
                default_size=(32, 32),
                default_steps=4,
                default_guidance=5.0,
            ),
        )

    return make


@pytest.fixture(scope="session")
def make_upscaler(make_bundle: MakeBundle) -> MakeBundle:
    """The same as make_bundle, with a U-Net and a schedule like those of Stable Diffusion 2's x4 upscaler."""

    def make(prediction: str = "v", seed: int = 0) -> ModelBundle:
        bundle = make_bundle(prediction, seed=seed)
        unet = UNet(
            UNetConfig(
                in_channels=7,
                model_channels=32,
                channel_mult=(1, 2),
                num_res_blocks=1,
                attention_levels=(False, True),
                cross_attention_only_levels=(False, True),
                num_heads=2,
                context_channels=32,
                num_classes=1000,
            )
        )
        randomise(unet, seed)
        assert bundle.autoencoder is not None
        return replace(
            bundle,
            diffusion=DiffusionModel(unet, UPSCALER.make(), Prediction(prediction)),
            autoencoder=Autoencoder(bundle.autoencoder.network, 0.08333),
            info=replace(bundle.info, name="upscaler", task="upscaling"),
        )

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: MakeBundle) -> ModelBundle:
    """One such model for tests that do not change it."""
    return make_bundle()


@pytest.fixture(scope="session")
def model_file(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a model as a single file on disk: `tiny.safetensors`."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    original.write(make_bundle(), path)
    return path
