"""`langevin convert` and `langevin info`: what they prove, refuse and print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny

from langevin.checkpoints import convert as module
from langevin.checkpoints.convert import convert
from langevin.checkpoints.loader import load_bundle
from langevin.cli.main import run
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError, RequestError


def test_there_and_back_is_the_same_file(tmp_path: Path, sd1_file: Path, sd2_file: Path) -> None:
    for source in (sd1_file, sd2_file):
        done = convert(source, tmp_path / source.stem, "diffusers")
        assert done.difference == 0 and done.left_out == ()
        assert done.tensors == len(load_file(source))
        back = convert(tmp_path / source.stem, tmp_path / f"{source.stem}.safetensors", "ldm")
        assert back.tensors == done.tensors
        assert (tmp_path / f"{source.stem}.safetensors").read_bytes() == source.read_bytes()


def test_a_pickle_becomes_safetensors(tmp_path: Path) -> None:
    tensors = tiny.single_file(ema=True)
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    tensors[name] = tensors[name][:1].expand(49408, 768).clone()
    torch.save({"state_dict": tensors, "global_step": 5}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors", "ldm")
    done = convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors", "ldm", allow_pickle=True)
    written = load_file(tmp_path / "m.safetensors")
    assert done.tensors == len(written) == len(tensors)
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_precision_and_extras(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "m.safetensors", tiny.single_file(dtype=torch.float32, ema=True))
    done = convert(source, tmp_path / "h.safetensors", "ldm", dtype="F16", extras=False)
    written = load_file(tmp_path / "h.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert not any(name.startswith("model_ema") for name in written)
    # The average was in use: it is what the pruned file has.
    averaged = load_file(source)["model_ema.diffusion_modelout2weight"]
    assert torch.equal(written["model.diffusion_model.out.2.weight"], averaged.half())
    assert "betas" in done.left_out and 0 < done.difference < 0.05
    assert (tmp_path / "h.safetensors").stat().st_size < source.stat().st_size / 2
    convert(source, tmp_path / "f", "diffusers", dtype="BF16")
    assert load_bundle(tmp_path / "f").info.stored_dtype == "BF16"


def test_an_unknown_prediction_type_is_probed_or_asked_for(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "m.safetensors", tiny.single_file(tiny.SD2))
    with pytest.raises(CheckpointError, match="pass prediction='epsilon' or 'v'"):
        convert(source, tmp_path / "f", "diffusers")
    assert not (tmp_path / "f").exists()
    done = convert(source, tmp_path / "f", "diffusers", prediction="v_prediction")
    assert done.prediction is Prediction.V
    assert load_bundle(tmp_path / "f").info.prediction is Prediction.V
    # From one single file to another nobody needs to know, and nothing is added.
    assert convert(source, tmp_path / "c.safetensors", "ldm").prediction is None
    assert (tmp_path / "c.safetensors").read_bytes() == source.read_bytes()
    # What was told from outside is kept in the new file.
    convert(source, tmp_path / "v.safetensors", "ldm", prediction="v")
    assert load_bundle(tmp_path / "v.safetensors").info.prediction is Prediction.V
    # The folder's text encoder ends where it is used; the single file made from it is whole again.
    convert(tmp_path / "f", tmp_path / "whole.safetensors", "ldm")
    assert load_file(tmp_path / "whole.safetensors").keys() == load_file(source).keys()
    tiny.same_outputs(load_bundle(tmp_path / "whole.safetensors"), load_bundle(tmp_path / "v.safetensors"))


def test_without_extras_the_unused_end_of_the_text_encoder_goes(tmp_path: Path, sd2_file: Path) -> None:
    done = convert(sd2_file, tmp_path / "f", "diffusers", extras=False)
    text = {name for name in done.left_out if name.startswith("cond_stage_model.")}
    assert "cond_stage_model.model.text_projection" in text and "cond_stage_model.model.logit_scale" in text
    assert {n.split(".")[4] for n in text if "resblocks" in n} == {"1"}
    back = convert(tmp_path / "f", tmp_path / "m.safetensors", "ldm")
    assert back.difference == 0 and back.left_out == ()
    tiny.same_outputs(load_bundle(tmp_path / "m.safetensors"), load_bundle(sd2_file))


def test_a_target_that_is_there_is_left_alone(tmp_path: Path, sd1_file: Path) -> None:
    target = tmp_path / "t.safetensors"
    target.write_text("mine")
    with pytest.raises(RequestError, match="exists already; choose another name or pass --force"):
        convert(sd1_file, target, "ldm")
    assert target.read_text() == "mine"
    convert(sd1_file, target, "ldm", overwrite=True)
    assert target.read_bytes() == sd1_file.read_bytes()
    with pytest.raises(RequestError, match="source and target are the same"):
        convert(target, target, "ldm", overwrite=True)
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    with pytest.raises(RequestError, match="exists already"):
        convert(sd1_file, folder, "diffusers")
    convert(sd1_file, folder, "diffusers", overwrite=True)
    assert not (folder / "old.txt").exists() and (folder / "model_index.json").exists()
    assert sorted(os.listdir(tmp_path)) == ["f", "t.safetensors"]
    for name, to, words in (
        ("x.ckpt", "ldm", r"end its name in \.safetensors"),
        ("no/x.safetensors", "ldm", "no such folder"),
    ):
        with pytest.raises(RequestError, match=words):
            convert(sd1_file, tmp_path / name, to)  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["ldm", "diffusers"])
def test_a_wrong_conversion_is_noticed_and_nothing_appears(
    tmp_path: Path, sd1_file: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults are put between writing and comparing: each must be seen."""
    target = tmp_path / ("t.safetensors" if to == "ldm" else "t")
    writer = "write_original" if to == "ldm" else "write_folder"
    honest = getattr(module, writer)
    victim = "" if to == "ldm" else "unet/diffusion_pytorch_model.safetensors"
    name = "model.diffusion_model.out.2.weight" if to == "ldm" else "conv_out.weight"
    other = (
        "model.diffusion_model.input_blocks.2.0.op.bias" if to == "ldm" else "down_blocks.0.downsamplers.0.conv.bias"
    )
    same_shape = "model.diffusion_model.input_blocks.0.0.bias" if to == "ldm" else "conv_in.bias"

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        tensors[other], tensors[same_shape] = tensors[same_shape], tensors[other]

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[3] += 1

    def change_type(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].float()

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["alphas_cumprod"]

    faults: list[Any] = [swap, nudge, change_type, *([lose] if to == "ldm" else [])]
    for fault in faults:

        def faulty(checkpoint: Any, path: Path, *, fault: Any = fault, **options: Any) -> None:
            honest(checkpoint, path, **options)
            file = path / victim if victim else path
            tensors = load_file(file)
            fault(tensors)
            metadata = {"format": "pt", "langevin.tokenizer": tiny.TOKENIZER.to_json()} if to == "ldm" else None
            save_file(tensors, file, metadata)

        monkeypatch.setattr(module, writer, faulty)
        with pytest.raises(CheckpointError, match=r"conversion changed|lost or invented") as error:
            convert(sd1_file, target, to)  # type: ignore[arg-type]
        assert os.listdir(tmp_path) == [] and ".tmp" not in str(error.value)


def test_controlnets_are_converted_too(tmp_path: Path) -> None:
    tensors = {n: v for n, v in tiny.single_file(control=True).items() if n.startswith("control_model.")}
    save_file(tensors, tmp_path / "c.safetensors", {"format": "pt"})
    done = convert(tmp_path / "c.safetensors", tmp_path / "f", "diffusers")
    assert done.tensors == len(tensors) and done.prediction is None
    convert(tmp_path / "f", tmp_path / "back.safetensors", "ldm")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    convert(tmp_path / "f", tmp_path / "half.safetensors", "ldm", dtype="BF16")
    assert load_file(tmp_path / "half.safetensors")["control_model.zero_convs.0.0.weight"].dtype == torch.bfloat16


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_converts_and_says_so(tmp_path: Path, sd1_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(sd1_file), str(tmp_path / "f"), "--to", "diffusers"]) == 0
    out = capsys.readouterr().out
    assert f"{len(load_file(sd1_file)):,} tensors, each equal to its source" in out
    assert "answers of the networks: equal; prediction type: epsilon" in out
    assert run(["convert", str(sd1_file), str(tmp_path / "f"), "--to", "diffusers"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "pass --force" in error and error.count("\n") == 1
    half = ["convert", str(tmp_path / "f"), str(tmp_path / "b.safetensors"), "--to", "ldm", "--dtype", "bfloat16"]
    assert run([*half, "--drop-extras"]) == 0
    out = capsys.readouterr().out
    assert "left out: 6 tensors that no network uses" in out and "new precision" in out


def test_info_prints_what_a_file_is(tmp_path: Path, sd2_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(sd2_file)]) == 0
    out = capsys.readouterr().out
    assert "a Stable Diffusion model" in out and "v (the file's modelspec.prediction_type)" in out
    assert "text-to-image (sd2)" in out and f"{sd2_file.stat().st_size:,} bytes" in out
    assert run(["info", str(sd2_file), "--json", "--hash"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["prediction"] == "v" and facts["parts"]["unet"]["dtype"] == "F16"
    assert list(facts["sha256"].values()) == [load_bundle(sd2_file).info.files[0].sha256]
    convert(sd2_file, tmp_path / "f", "diffusers")
    assert run(["info", str(tmp_path / "f")]) == 0
    out = capsys.readouterr().out
    assert "diffusers folder" in out and "v (scheduler_config.json)" in out
    control = {n: v for n, v in tiny.single_file(control=True).items() if n.startswith("control_model.")}
    save_file(control, tmp_path / "c.safetensors")
    assert run(["info", str(tmp_path / "c.safetensors")]) == 0
    assert "a ControlNet in the original layout" in (out := capsys.readouterr().out) and "768 channels" in out
    convert(tmp_path / "c.safetensors", tmp_path / "cf", "diffusers")
    assert run(["info", str(tmp_path / "cf")]) == 0
    assert "a ControlNet in the diffusers layout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n0000", "a PNG picture; expected a safetensors file"),
        (b"<html>502</html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_info_complains_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert run(["info", str(tmp_path / "x.safetensors")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_info_does_not_import_torch(sd1_file: Path) -> None:
    import subprocess

    code = (
        "import sys; from langevin.cli.main import run; code = run(['info', sys.argv[1]]); "
        "assert 'torch' not in sys.modules and code == 0"
    )
    subprocess.run([sys.executable, "-c", code, str(sd1_file)], check=True, capture_output=True)
