"""Folders that are incomplete, foreign or hostile: refused in one line, and nothing in them is ever run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langevin.checkpoints.folder_writer import write_folder
from langevin.checkpoints.loader import load_bundle, open_checkpoint
from langevin.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sd1_file: Path) -> Path:
    path = tmp_path_factory.mktemp("folder") / "m"
    write_folder(open_checkpoint(sd1_file), path)
    return path


def copied(folder: Path, target: Path) -> Path:
    """A copy whose weights are hard links: they are replaced, not written to."""

    def copy(source: str, to: str) -> None:
        if source.endswith(".safetensors"):
            os.link(source, to)
        else:
            shutil.copyfile(source, to)

    shutil.copytree(folder, target, copy_function=copy)
    return target


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "_class_name: .*XL.*; expected one of"),
        ("model_index.json", {"_class_name": ["pipeline", "MyPipeline"]}, "_class_name"),
        ("model_index.json", {"unet": ["pipeline", "MyUNet"]}, r"unet: \[.*MyUNet.*; expected UNet2DConditionModel"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny.*; expected AutoencoderKL"),
        ("model_index.json", {"tokenizer": ["transformers", "T5Tokenizer"]}, "T5Tokenizer"),
        ("model_index.json", {"adapter": ["diffusers", "T2IAdapter"]}, "adapter: an unknown component"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel.*; expected UNet2D"),
        ("unet/config.json", {"act_fn": "gelu"}, r'act_fn: "gelu" is not supported \("silu" or "swish"\)'),
        ("unet/config.json", {"dual_cross_attention": True}, r"dual_cross_attention: true is not supported"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("unet/config.json", {"norm_num_groups": 16}, r"norm_num_groups: 16 is not supported \(32\)"),
        ("unet/config.json", {"mid_block_type": None}, "mid_block_type: null is not known"),
        ("unet/config.json", {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "SkipDownBlock2D"),
        ("unet/config.json", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "does not mirror"),
        ("unet/config.json", {"attention_head_dim": [3, 5]}, "attention_head_dim"),
        ("unet/config.json", {"block_out_channels": [32, 48]}, "block_out_channels"),
        ("unet/config.json", {"block_out_channels": [32, 96]}, "has shape"),
        ("unet/config.json", {"cross_attention_dim": "768"}, "is not a whole number"),
        ("unet/config.json", {"something_new": 3}, r"something_new: 3 is not supported \(not known here\)"),
        ("vae/config.json", {"scaling_factor": -1.0}, "scaling_factor"),
        ("vae/config.json", {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "AttnDownEncoderBlock2D"),
        ("vae/config.json", {"mid_block_add_attention": 0.5}, "mid_block_add_attention"),
        ("text_encoder/config.json", {"model_type": "bert"}, "model_type: 'bert'"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("text_encoder/config.json", {"num_attention_heads": 7}, "multiple of heads 7"),
        ("text_encoder/config.json", {"architectures": ["MyModel"]}, "MyModel"),
        ("text_encoder/config.json", {"layer_norm_eps": 0.1}, "layer_norm_eps"),
    ],
)
def test_bad_configurations(tmp_path: Path, folder: Path, file: str, change: dict[str, Any], words: str) -> None:
    model = copied(folder, tmp_path / "m")
    data = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(data | change))
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(model)
    assert file in str(error.value) or "has shape" in words
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: (f / "unet" / "config.json").unlink(), r"unet/config\.json: not there; the model folder is incompl"),
        (lambda f: shutil.rmtree(f / "vae"), r"vae/config\.json: not there"),
        (lambda f: (f / "vae" / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "vae" / "config.json").write_text("[]"), "a JSON list; expected an object"),
        (lambda f: (f / "vae" / "config.json").write_text("[" * 100_000), "not JSON"),
        (lambda f: (f / "vae" / "config.json").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda f: (f / "vae" / "config.json").write_text(" " * 4_000_001), "bytes; a configuration has at most"),
        (lambda f: (f / UNET_WEIGHTS).unlink(), "no weights: expected diffusion_pytorch_model"),
        (lambda f: replace(f / UNET_WEIGHTS, b"<html>"), "HTML"),
        (lambda f: replace(f / "langevin.safetensors", b"12345678"), "no safetensors header"),
        (lambda f: replace(f / "langevin.safetensors", (f / UNET_WEIGHTS).read_bytes()), "langevin.layout is missing"),
        (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "no vocab.json"),
    ],
)  # fmt: skip
def test_incomplete_folders(tmp_path: Path, folder: Path, break_it: Callable[[Path], Any], words: str) -> None:
    copied(folder, tmp_path / "m")
    break_it(tmp_path / "m")
    with pytest.raises(CheckpointError, match=words) as error:
        load_bundle(tmp_path / "m")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"a": "../../x.safetensors"}}, r"shard '\.\./\.\./x\.safetensors' is not the name"),
        ({"weight_map": {"a": "/etc/passwd"}}, "is not the name of a .safetensors file beside it"),
        ({"weight_map": {"a": "x.bin"}}, "is not the name of a .safetensors file beside it"),
        ({"weight_map": {"a": 3}}, "is not the name of a .safetensors file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "shard gone.safetensors is missing"),
        ({"weight_map": {"a": "part.safetensors"}}, r"does not hold what the index says \(a, "),
    ],
)  # fmt: skip
def test_bad_shard_indices(tmp_path: Path, folder: Path, index: dict[str, Any], words: str) -> None:
    copied(folder, tmp_path / "m")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("part.safetensors"))
    weights.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words):
        load_bundle(tmp_path / "m")


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("model_index.json", {"custom_pipeline": "owner/evil"}),
    ("model_index.json", {"trust_remote_code": True}),
    ("model_index.json", {"_class_name": ["pipeline", "Evil"]}),
    ("model_index.json", {"unet": ["evil", "UNet2DConditionModel"]}),
    ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True}),
    ("text_encoder/config.json", {"_attn_implementation_internal": "owner/evil", "_attn_implementation": "owner/evil"}),
    ("text_encoder/config.json", {"vision_config": {"trust_remote_code": True}}),
    ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
    ("scheduler/scheduler_config.json", {"_class_name": "Evil"}),
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_no_configuration_makes_anything_run(tmp_path: Path, folder: Path, case: int) -> None:
    """With code of an attacker lying in every place where another program would look for it."""
    target = tmp_path / "m"
    copied(folder, target)
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n"
    for place in (".", "unet", "text_encoder", "tokenizer", "scheduler"):
        for name in ("pipeline.py", "evil.py", "__init__.py", "modeling.py"):
            (target / place / name).write_text(code)
    file, change = HOSTILE[case]
    (target / file).write_text(json.dumps(json.loads((target / file).read_text()) | change))
    seen: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("subprocess.Popen", "os.system", "socket.connect", "os.exec"):
            seen.append(event)
        if watching and event in ("exec", "compile", "import") and any(str(target) in str(a) for a in arguments):
            seen.append(f"{event} {arguments}")

    sys.addaudithook(watch)
    try:
        open_checkpoint(target)
    except CheckpointError as error:
        assert "\n" not in str(error)
    finally:
        watching = False
    assert seen == [] and not canary.exists()
