"""Files that are almost right: one line says what was found and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import tiny

from langevin.checkpoints.loader import load_bundle, open_checkpoint
from langevin.checkpoints.safetensors_file import write_safetensors
from langevin.checkpoints.tensorfile import TensorInfo, dtype_name
from langevin.errors import CheckpointError


def broken(tmp_path: Path, change: Any) -> Path:
    tensors = tiny.single_file()
    change(tensors)
    return tiny.save(tmp_path / "a.safetensors", tensors)


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{UNET}middle_block.0.in_layers.2.bias"), r"U-Net: 1 of \d+ tensors are missing \(model\."),
        (lambda t: t.pop("first_stage_model.quant_conv.bias"), r"autoencoder: 1 of \d+ tensors are missing"),
        (lambda t: t.update({f"{UNET}extra.weight": torch.zeros(1)}), r"U-Net: 1 tensors too many \(model\.diffusion"),
        (lambda t: t.update({"foo.bar": torch.zeros(1)}), r"1 of \d+ tensors do not belong .* \(foo\.bar\)"),
        (
            lambda t: t.update({f"zz.{i}": torch.zeros(1) for i in range(9)}),
            r"9 of \d+ .*\(zz\.0, zz\.1, zz\.2 and 6 more\)",
        ),
        (lambda t: t.update({f"{UNET}out.0.bias": torch.zeros(33)}), r"out\.0\.bias has shape \[33\], expected \[32\]"),
        (lambda t: t.update({f"{UNET}out.0.bias": torch.zeros(32).int()}), "stored as I32, expected F64, F32, F16"),
        (lambda t: t.update({f"{UNET}out.0.bias": torch.zeros(32).to(torch.float8_e4m3fn)}), "quantised"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("first_stage")], r"no autoencoder \(first_stage"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("cond_stage")], "no text encoder"),
        (lambda t: t.pop(f"{UNET}input_blocks.0.0.weight"), r"there is no input_blocks\.0\.0\.weight"),
        (lambda t: rename(t, f"{UNET}input_blocks.1.1.norm.weight", f"{UNET}x"), "U-Net"),
        (lambda t: t.update({"alphas_cumprod": torch.rand(1000)}), "no noise schedule"),
        (lambda t: t.update({"alphas_cumprod": torch.rand(2, 2)}), "expected a table"),
    ],
)  # fmt: skip
def test_what_is_missing_or_too_much_is_named_in_one_line(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        load_bundle(broken(tmp_path, change))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path, sd1_file: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = load_file(sd1_file)
    infos = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    write_safetensors(path, infos, tensors.__getitem__, overwrite=True)
    with pytest.raises(CheckpointError, match=r"text encoder of \d+ tokens, and no langevin.tokenizer .* has 49408"):
        load_bundle(path)


def test_unconventional_heads_must_be_told(tmp_path: Path) -> None:
    from langevin.networks.unet import UNetConfig

    unet = UNetConfig(**{**vars(tiny.SD1), "context_channels": 512})
    path = tiny.save(tmp_path / "a.safetensors", tiny.single_file(unet))
    with pytest.raises(CheckpointError, match=r"attention heads cannot be told .* pass config= \(--config\)"):
        open_checkpoint(path)
    for text, expected in (("num_heads: 4", (4, None)), ("num_head_channels: 16", (None, 16))):
        yaml = tmp_path / "given.yaml"
        yaml.write_text(f"model:\n  params:\n    unet_config:\n      params:\n        {text}\n")
        config = open_checkpoint(path, config=yaml).config
        assert (config.unet.num_heads, config.unet.head_channels) == expected
