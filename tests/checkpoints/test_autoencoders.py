"""Another autoencoder for a model: from every place that one may be in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints import tiny

from langevin.checkpoints import places
from langevin.checkpoints.additions import set_autoencoder
from langevin.checkpoints.convert import convert
from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.original import write
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle
from langevin.networks.autoencoder import AutoencoderKL


@pytest.fixture(scope="module")
def bundle(sd1_file: Path) -> ModelBundle:
    return load_bundle(sd1_file)


@pytest.fixture(scope="module")
def other() -> AutoencoderKL:
    network = tiny.random_network(AutoencoderKL(tiny.CODEC), seed=50)
    assert isinstance(network, AutoencoderKL)
    return network


def test_it_comes_from_a_file_a_folder_a_model_or_a_name(
    bundle: ModelBundle, other: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = other.state_dict()
    models = tmp_path / "models" / "VAE"
    models.mkdir(parents=True)
    extras = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)}  # as training leaves them
    save_file({**state, **extras}, models / "fine.safetensors")
    torch.save({"state_dict": state}, tmp_path / "fine.ckpt")
    whole = tiny.single_file(dtype=torch.float32)
    whole |= {f"first_stage_model.{name}": value for name, value in state.items()}
    tiny.save(tmp_path / "whole.safetensors", whole)
    convert(tmp_path / "whole.safetensors", tmp_path / "folder", "diffusers")
    monkeypatch.setenv("LANGEVIN_MODELS", str(tmp_path))
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = other.decode(latent / 0.18215)
    weights = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    for source, file in (
        ("fine", models / "fine.safetensors"),
        (models / "fine.safetensors", models / "fine.safetensors"),
        (tmp_path / "fine.ckpt", tmp_path / "fine.ckpt"),
        (tmp_path / "whole.safetensors", tmp_path / "whole.safetensors"),
        (tmp_path / "folder", weights),
        (tmp_path / "folder" / "vae", weights),
        (weights, weights),
    ):
        changed = set_autoencoder(bundle, source, allow_pickle=True)
        assert changed.autoencoder is not None and bundle.autoencoder is not None
        with torch.no_grad():
            assert torch.allclose(changed.autoencoder.decode(latent), expected, atol=1e-5), source
            assert not torch.allclose(bundle.autoencoder.decode(latent), expected, atol=1e-2)
        assert [(a.kind, a.file.path) for a in changed.info.additions] == [("vae", file)]
        assert changed.diffusion is bundle.diffusion


def test_groups_are_kept_in_files_and_folders(bundle: ModelBundle, tmp_path: Path) -> None:
    """The weights do not tell the number of groups: our own files and a folder's config.json do."""
    network = tiny.random_network(AutoencoderKL(replace(tiny.CODEC, groups=8)), seed=51)
    assert isinstance(network, AutoencoderKL) and bundle.autoencoder is not None
    changed = replace(bundle, autoencoder=replace(bundle.autoencoder, network=network))
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network.decode(latent / 0.18215)
    layout = replace(bundle.info.layout, complete=False) if bundle.info.layout else None
    write(replace(changed, info=replace(bundle.info, layout=layout)), tmp_path / "own.safetensors")
    convert(tmp_path / "own.safetensors", tmp_path / "folder", "diffusers")
    for place in (tmp_path / "own.safetensors", tmp_path / "folder"):
        for found in (load_bundle(place), set_autoencoder(bundle, place)):
            assert found.autoencoder is not None and found.autoencoder.network.config.groups == 8
            with torch.no_grad():
                assert torch.allclose(found.autoencoder.decode(latent), expected, atol=1e-5)


def test_what_does_not_fit_is_said(
    bundle: ModelBundle, other: AutoencoderKL, sd1_file: Path, tmp_path: Path, model_file: Path
) -> None:
    state = other.state_dict()
    save_file(dict(list(state.items())[:-1]), tmp_path / "part.safetensors")
    laid = tiny.laid_out(other, places.diffusers_vae(state, tiny.CODEC), torch.float32)
    save_file(laid, tmp_path / "alone.safetensors")
    save_file({"emb_params": torch.zeros(1, 768)}, tmp_path / "word.safetensors")
    torch.save(state, tmp_path / "fine.ckpt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    for source, said in (
        ("part.safetensors", "1 of "),
        ("alone.safetensors", "needs its config.json beside it"),
        ("word.safetensors", "a textual-inversion embedding; expected an autoencoder (VAE)"),
        ("fine.ckpt", "allow_pickle"),
        ("other", "no weights"),
        ("nowhere", "no such file or folder, no place to find a VAE by name"),
        (model_file, "latents of 4 channels at 1/4 of the size; those of sd1 have 4 at 1/2"),
    ):
        with pytest.raises(CheckpointError) as error:
            set_autoencoder(bundle, tmp_path / source if (tmp_path / source).exists() else source)
        assert said in str(error.value) and "\n" not in str(error.value), source
