"""Files of ControlNets and T2I-Adapters in every layout, and those that are for other models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny

from langevin.checkpoints.adapters import open_adapter_file, open_adapter_folder
from langevin.checkpoints.controlnets import open_control_file, write_control_file, write_control_folder
from langevin.checkpoints.describe import describe
from langevin.checkpoints.loader import load_controlnet, open_tensors
from langevin.checkpoints.steering import check_adapter_fits, check_fits
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle
from langevin.networks.t2i_adapter import T2IAdapter, T2IAdapterConfig
from langevin.networks.unet import UNetConfig

FULL = T2IAdapterConfig(channels=(32, 64, 128, 128))
LIGHT = T2IAdapterConfig(channels=(32, 64, 128, 128), num_res_blocks=4, light=True)


def saved(path: Path, network: torch.nn.Module, prefix: str = "") -> Path:
    save_file({prefix + n: t.contiguous() for n, t in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("config", [FULL, LIGHT], ids=["full", "light"])
def test_adapters_in_every_layout(config: T2IAdapterConfig, tmp_path: Path) -> None:
    original = open_adapter_file(open_tensors(saved(tmp_path / "a.safetensors", T2IAdapter(config))))
    assert original.config == config
    assert describe(tmp_path / "a.safetensors")["what"] == "a T2I-Adapter in the original layout"
    theirs = diffusers.T2IAdapter(
        channels=list(config.channels[: 3 if config.light else 4]), num_res_blocks=config.num_res_blocks,
        adapter_type="light_adapter" if config.light else "full_adapter",
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "folder")
    assert describe(tmp_path / "folder")["what"] == "a T2I-Adapter in the diffusers layout"
    folder = open_adapter_folder(tmp_path / "folder")
    weights = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    alone = open_adapter_file(open_tensors(weights))
    assert folder.config == alone.config == config
    for name in folder.part.places:
        assert torch.equal(folder.part.read(name), alone.part.read(name))


def _xl(tmp_path: Path) -> Path:
    network = diffusers.T2IAdapter(channels=[32, 32, 64, 64], downscale_factor=16, adapter_type="full_adapter_xl")
    network.save_pretrained(tmp_path / "xl")
    return tmp_path / "xl"


def test_what_is_no_adapter_for_this_family_is_refused(tmp_path: Path) -> None:
    folder = _xl(tmp_path)
    with pytest.raises(CheckpointError, match="a T2I-Adapter for Stable Diffusion XL; expected one for"):
        open_adapter_folder(folder)
    with pytest.raises(CheckpointError, match="a T2I-Adapter for Stable Diffusion XL; expected one for"):
        open_adapter_file(open_tensors(folder / "diffusion_pytorch_model.safetensors"))
    state = dict(T2IAdapter(FULL).state_dict())
    cases: list[tuple[dict[str, Any], str]] = [
        (state | {"style": torch.zeros(1)}, "tensors too many"),
        ({n: t for n, t in state.items() if n != "body.7.block2.bias"}, "are missing"),
        (
            {n: t for n, t in state.items() if not n.startswith("body.7.")},
            "a T2I-Adapter of 7 blocks; expected as many in each of 4",
        ),
        (state | {"conv_in.weight": torch.zeros(32, 100, 3, 3)}, "for 100 channels"),
        ({"style_embedding": torch.zeros(1, 8, 16)}, "a T2I-Adapter for style; expected a T2I-Adapter"),
    ]
    for tensors, words in cases:
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=words):
            open_adapter_file(open_tensors(tmp_path / "x.safetensors"))


def test_pooled_residuals_are_said_beside_the_weights(tmp_path: Path) -> None:
    """By the authors' YAML, or in a diffusers folder; the original layout alone cannot hold it."""
    tensors = {n: v for n, v in tiny.single_file(control=True).items() if n.startswith("control_model.")}
    save_file(tensors, tmp_path / "shuffle.safetensors")
    assert not load_controlnet(tmp_path / "shuffle.safetensors").pooled
    (tmp_path / "shuffle.yaml").write_text("model: {params: {only_mid_control: False, global_average_pooling: True}}")
    assert load_controlnet(tmp_path / "shuffle.safetensors").pooled
    opened = open_control_file(open_tensors(tmp_path / "shuffle.safetensors"))
    write_control_folder(opened, tmp_path / "folder")
    assert load_controlnet(tmp_path / "folder").pooled
    with pytest.raises(CheckpointError, match="its residuals are pooled, which the original layout leaves to a file"):
        write_control_file(opened, tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


def test_a_diffusers_controlnet_outside_its_folder(tmp_path: Path) -> None:
    diffusers.ControlNetModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    ).save_pretrained(tmp_path / "folder")  # fmt: skip
    file = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    assert torch.equal(*(load_controlnet(p).zero_convs[0][0].weight for p in (file, tmp_path / "folder")))  # type: ignore[index]
    shutil.copy(file, tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match=r"in the diffusers layout, without its config\.json"):
        load_controlnet(tmp_path / "alone.safetensors")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config |= {"addition_embed_type": "text_time"}
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="a ControlNet for Stable Diffusion XL; expected one for"):
        load_controlnet(tmp_path / "folder")
    tensors = {n: v for n, v in tiny.single_file(control=True).items() if n.startswith("control_model.")}
    save_file(tensors | {"control_model.label_emb.0.0.weight": torch.zeros(2, 2)}, tmp_path / "xl.safetensors")
    with pytest.raises(CheckpointError, match="a ControlNet for Stable Diffusion XL; expected one for"):
        load_controlnet(tmp_path / "xl.safetensors")
    assert load_file(file)


def test_the_fit_names_what_differs(tiny_bundle: ModelBundle) -> None:
    unet = tiny_bundle.diffusion.network.config
    assert isinstance(unet, UNetConfig)
    check_fits(unet, tiny_bundle, "c")
    check_adapter_fits((32, 64), tiny_bundle, "a")
    for changes, words in (
        (
            {"context_channels": 768},
            r"c steers models with a context of 768 channels \(Stable Diffusion 1\.x\); tiny",
        ),
        (
            {"channel_mult": (1, 4)},
            "c steers U-Nets of 1 blocks in levels of 32/128 channels; that of tiny has 1",
        ),
        ({"num_res_blocks": 2}, "c steers U-Nets of 2 blocks in levels of 32/64 channels; that of tiny has 1 blocks"),
        ({"in_channels": 9}, "c sees 9 channels; tiny has latents of 4"),
    ):
        with pytest.raises(CheckpointError, match=words):
            check_fits(UNetConfig(**{**vars(unet), **changes}), tiny_bundle, "c")
