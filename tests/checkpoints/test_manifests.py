"""Every published checkpoint of Stable Diffusion 1.x and 2.x: recognised, nothing missing, nothing unexpected."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints.sparse import diffusers_model, original_file, published, sparse_file

from langevin.checkpoints.checkpoint import family_of, meta_networks, task_of
from langevin.checkpoints.config import STABLE_DIFFUSION, UPSCALER
from langevin.checkpoints.describe import describe
from langevin.checkpoints.folder_writer import _tokenizer_texts
from langevin.checkpoints.loader import open_checkpoint, open_control
from langevin.model.tokenizer import Tokenizer
from langevin.networks.unet import UNetConfig

SD2: dict[str, Any] = {
    "num_heads": None,
    "head_channels": 64,
    "context_channels": 1024,
    "linear_projection": True,
}
UNETS = {
    "sd1": UNetConfig(),
    "sd1-inpainting": UNetConfig(in_channels=9),
    "sd2": UNetConfig(**SD2),
    "sd2-depth": UNetConfig(**SD2, in_channels=5),
    "sd2-inpainting": UNetConfig(**SD2, in_channels=9),
    "upscaler": UNetConfig(
        in_channels=7,
        model_channels=256,
        channel_mult=(1, 2, 2, 4),
        attention_levels=(False, True, True, True),
        context_channels=1024,
        linear_projection=True,
        cross_attention_only_levels=(False, True, True, False),
        num_classes=1000,
    ),
}
# Parameters of the U-Nets as published.
PARAMETERS = {
    "sd1": 859_520_964,
    "sd1-inpainting": 859_535_364,
    "sd2": 865_910_724,
    "sd2-depth": 865_913_604,
    "sd2-inpainting": 865_925_124,
    "upscaler": 473_398_020,
}
# Which U-Net, family, task, prediction type, and how many tensors no network of ours uses.
ORIGINAL = {
    "sd-v1-4_v1-5": ("sd1", "sd1", "text-to-image", "epsilon", 13),
    "sd-v1-full-ema": ("sd1", "sd1", "text-to-image", "epsilon", 13 + 686 + 2),
    "sd-v1-5-inpainting": ("sd1-inpainting", "sd1", "inpainting", "epsilon", 13),
    "v2-base_512-base-ema": ("sd2", "sd2", "text-to-image", None, 13),
    "v2-1_768-v": ("sd2", "sd2", "text-to-image", None, 13),
    "512-inpainting-ema": ("sd2-inpainting", "sd2", "inpainting", "epsilon", 13),
    "512-depth-ema": ("sd2-depth", "sd2", "depth", "epsilon", 13 + 368),
    "x4-upscaler-ema": ("upscaler", "sd2", "upscaling", "v", 13 + 8),
    "control_sd15_canny_full": ("sd1", "sd1", "text-to-image", "epsilon", 14),
    "control_v11_sd21-style_full": ("sd2", "sd2", "text-to-image", None, 14),
}
FOLDERS = {
    "CompVis--stable-diffusion-v1-4": ("sd1", "epsilon", 512),
    "runwayml--stable-diffusion-v1-5": ("sd1", "epsilon", 512),
    "runwayml--stable-diffusion-inpainting": ("sd1-inpainting", "epsilon", 512),
    "stabilityai--stable-diffusion-2-base": ("sd2", "epsilon", 512),
    "stabilityai--stable-diffusion-2": ("sd2", "v", 768),
    "stabilityai--stable-diffusion-2-1-base": ("sd2", "epsilon", 512),
    "stabilityai--stable-diffusion-2-1": ("sd2", "v", 768),
    "stabilityai--stable-diffusion-2-inpainting": ("sd2-inpainting", "epsilon", 512),
    "stabilityai--stable-diffusion-2-depth": ("sd2-depth", "epsilon", 512),
    "stabilityai--stable-diffusion-x4-upscaler": ("upscaler", "v", 512),
}


def test_the_lists_name_every_manifest() -> None:
    controls = {"control_sd15_canny_control-only", "control_v11_sd21-style_control-only"}
    assert set(published("original")) == set(ORIGINAL) | controls
    # The depth estimator is a network that Langevin does not have.
    parts = {name.split(".")[0] for name in published("diffusers")}
    assert parts == set(FOLDERS) | {"lllyasviel--sd-controlnet-canny"}


@pytest.mark.parametrize("name", ORIGINAL)
def test_published_single_files_fit_without_remainder(tmp_path: Path, name: str) -> None:
    unet, family, task, prediction, unused = ORIGINAL[name]
    path = original_file(tmp_path / f"{name}.safetensors", name)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    assert config.unet == UNETS[unet]
    assert (family_of(config.unet), task_of(config), config.prediction) == (family, task, prediction)
    assert config.schedule == (UPSCALER if unet == "upscaler" else STABLE_DIFFUSION)
    assert config.scale_factor == (0.08333 if unet == "upscaler" else 0.18215)
    assert config.text_layer == (-1 if family == "sd1" else -2)
    assert checkpoint.weights == ("ema" if name == "sd-v1-full-ema" else "plain")
    assert len(checkpoint.extras) == unused
    # Every tensor of the file is in a network or among the extras, and every tensor of the networks is in the file.
    used = {place.name for part in checkpoint.parts.values() for place in part.places.values()}
    assert used | set(checkpoint.extras) == set(published("original")[name]) and not used & set(checkpoint.extras)
    networks = meta_networks(config)
    assert set(networks) == ({"unet", "vae", "text", "control"} if "control" in name else {"unet", "vae", "text"})
    for part, network in networks.items():
        assert set(network.state_dict()) == set(checkpoint.parts[part].places)
    assert sum(p.numel() for p in networks["unet"].parameters()) == PARAMETERS[unet]


CURRENT_NAMES = [("stabilityai--stable-diffusion-x4-upscaler", False), ("runwayml--stable-diffusion-v1-5", False)]


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, str]:
    """The files of the standard tokenizer that do not depend on the model."""
    texts = _tokenizer_texts(Tokenizer.clip())
    return {name: text for name, text in texts.items() if name.endswith(("vocab.json", "merges.txt"))}


@pytest.mark.parametrize(("repository", "names_of_2022"), [*((name, True) for name in FOLDERS), *CURRENT_NAMES])
def test_published_folders_fit_without_remainder(
    tmp_path: Path, vocabulary: dict[str, str], repository: str, names_of_2022: bool
) -> None:
    unet, prediction, size = FOLDERS[repository]
    folder = diffusers_model(tmp_path, repository, names_of_2022=names_of_2022)
    for name, text in vocabulary.items():
        (folder / name).write_text(text, encoding="utf-8")
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    expected = UNETS[unet]
    if unet == "upscaler":  # the folder states a level without attention too
        expected = UNetConfig(**{**vars(expected), "cross_attention_only_levels": (True, True, True, False)})
    if repository.endswith("2-1"):
        expected = UNetConfig(**{**vars(expected), "upcast_attention": True})
    assert config.unet == expected
    assert config.prediction == prediction and config.prediction is not None
    assert config.defaults.width == size
    assert config.schedule == (UPSCALER if unet == "upscaler" else STABLE_DIFFUSION)
    assert config.text is not None and config.text.layers == (12 if unet.startswith("sd1") else 23)
    assert config.text_layer == -1
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.pad == (49407 if unet.startswith("sd1") else 0)
    assert list(checkpoint.extras) == ["cond_stage_model.transformer.text_model.embeddings.position_ids"]


@pytest.mark.parametrize("layout", ["control_model.", "bare", "full", "diffusers"])
def test_published_controlnets_fit_without_remainder(tmp_path: Path, layout: str) -> None:
    originals = published("original")
    if layout == "diffusers":
        name = "lllyasviel--sd-controlnet-canny"
        manifest = published("diffusers")[f"{name}.controlnet"]
        sparse_file(tmp_path / "diffusion_pytorch_model.safetensors", manifest)
        (tmp_path / "config.json").write_text(json.dumps(published("configs")[name]["config.json"]))
        control = open_control(tmp_path)
    elif layout == "full":
        control = open_control(original_file(tmp_path / "c.safetensors", "control_sd15_canny_full"))
    else:
        manifest = originals["control_sd15_canny_control-only"]
        if layout == "bare":
            manifest = {name.removeprefix("control_model."): entry for name, entry in manifest.items()}
        control = open_control(sparse_file(tmp_path / "c.safetensors", manifest))
    assert control.config == UNETS["sd1"] and control.hint_channels == 3
    assert sum(math.prod(shape) for shape in control.part.shapes.values()) == 361_279_120


def test_a_controlnet_for_2_1_has_heads_of_64_channels(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "c.safetensors", published("original")["control_v11_sd21-style_control-only"])
    assert open_control(path).config == UNETS["sd2"]


@pytest.mark.parametrize("name", ORIGINAL)
def test_info_needs_the_header_alone(tmp_path: Path, name: str) -> None:
    unet, family, task, prediction, unused = ORIGINAL[name]
    path = original_file(tmp_path / f"{name}.safetensors", name)
    begin = time.process_time()
    facts = describe(path)
    assert time.process_time() - begin < 1
    assert (facts["family"], facts["task"], facts["prediction"]) == (family, task, prediction)
    assert facts["parts"]["unet"]["parameters"] == PARAMETERS[unet]
    assert facts["ema"] == (name == "sd-v1-full-ema")
    assert facts["other_tensors"] == unused
    assert facts["bytes"] == path.stat().st_size
