"""Training with T5 and BERT as text encoders, from the recipe's option to a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.model.encoder_folders import write_encoder
from tests.training.test_text_to_image import TINY

from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.original import write as write_model
from langevin.cli.main import run as langevin
from langevin.errors import CheckpointError
from langevin.model.text_transformers import TransformersEncoder

SETTINGS = [s for s in TINY if "loop.steps" not in s and "save_every" not in s]
SETTINGS += ["autoencoder.loop.steps=2", "diffusion.loop.steps=4", "diffusion.loop.save_every=2"]


def train(shapes: Path, out: Path, kind: str, folder: Path, *more: str) -> int:
    encoder = json.dumps({"kind": kind, "path": str(folder), "length": 16})
    settings = [part for s in (*SETTINGS, f"text_encoder={encoder}") for part in ("--set", s)]
    return langevin(["train", "emoji", "--data", str(shapes), "--out", str(out), "--device", "cpu", *settings, *more])


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("t5")
    write_encoder(root / "encoder", "t5")
    assert train(shapes, root / "run", "t5", root / "encoder") == 0
    return root


def test_a_model_trained_with_t5_names_it_and_makes_pictures(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained / "run" / "model.safetensors"
    assert not (trained / "run" / "clip").exists()
    with safe_open(path, "pt") as file:
        assert not any(name.startswith("cond_stage_model.") for name in file.keys())  # noqa: SIM118
        record = json.loads(file.metadata()["langevin.text_encoder"])
    assert record["kind"] == "t5" and record["length"] == 16 and len(record["files"]["model.safetensors"]) == 64
    bundle = load_bundle(path)
    assert isinstance(bundle.text, TransformersEncoder) and bundle.text.states(["red"]).shape == (1, 16, 32)
    picture = tmp_path / "a.png"
    command = ["generate", "a (red:1.2) circle", "--model", str(path), "-o", str(picture), "--steps", "2"]
    assert langevin(command) == 0
    assert "weights and BREAK have no effect with T5" in capsys.readouterr().err
    assert langevin(["reproduce", str(picture), "--verify", "--model", str(path)]) == 0
    capsys.readouterr()
    assert langevin(["explain", "red", "--model", str(path)]) == 2
    assert "has the text encoder T5: only prompts of CLIP's are explained" in capsys.readouterr().err
    assert langevin(["convert", str(path), str(tmp_path / "folder"), "--to", "diffusers"]) == 2
    write_model(bundle, tmp_path / "again.safetensors")
    again = load_bundle(tmp_path / "again.safetensors")
    assert isinstance(again.text, TransformersEncoder) and again.text.record == bundle.text.record


def test_another_encoder_is_refused(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    path = tmp_path / "moved" / "run" / "model.safetensors"
    (tmp_path / "moved" / "encoder").rename(tmp_path / "moved" / "run" / "encoder")
    kept = trained / "encoder"
    aside = trained / "aside"
    kept.rename(aside)
    try:
        assert isinstance(load_bundle(path).text, TransformersEncoder)  # beside the model
        with pytest.raises(CheckpointError, match="is not there: put its folder 'encoder' beside the model"):
            load_bundle(trained / "run" / "model.safetensors")
        write_encoder(kept, "t5", seed=1)
        with pytest.raises(CheckpointError, match=r"the text encoder that the model was trained with: its model\.saf"):
            load_bundle(trained / "run" / "model.safetensors")
        shutil.copytree(trained / "run", tmp_path / "run")
        (tmp_path / "run" / "model.safetensors").unlink()
        assert train(shapes, tmp_path / "run", "t5", kept, "--resume") == 2
        assert "made with text_encoder.model.safetensors = " in capsys.readouterr().err
    finally:
        shutil.rmtree(kept, ignore_errors=True)
        aside.rename(kept)


def test_bert_trains_and_resumes_to_the_same_bits(trained: Path, shapes: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    shutil.copytree(trained / "run" / "autoencoder", tmp_path / "run" / "autoencoder")
    assert train(shapes, tmp_path / "run", "bert", folder, "--stage", "diffusion") == 0
    checkpoints = tmp_path / "run" / "diffusion" / "checkpoints"
    before = (checkpoints / "00000004" / "weights.safetensors").read_bytes()
    shutil.rmtree(checkpoints / "00000004")  # as if killed after the second step's checkpoint
    assert train(shapes, tmp_path / "run", "bert", folder, "--stage", "diffusion", "--resume") == 0
    assert (checkpoints / "00000004" / "weights.safetensors").read_bytes() == before
    context = load_bundle(tmp_path / "run" / "model.safetensors").text.states(["a red circle"])  # type: ignore[union-attr]
    assert context.shape == (1, 16, 32) and bool(torch.isfinite(context).all())


def test_an_encoder_that_does_not_fit_is_refused_before_the_first_step(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_encoder(tmp_path / "wide", "t5", width=64)
    for kind, path, message in [
        ("t5", folder, "gives states of 64 channels, the U-Net takes 32: set diffusion.network.context_channels=64"),
        ("bert", folder, "holds a model of type 't5', not bert"),
        ("t5", tmp_path / "missing", "no such folder, and not a Hub id"),
        ("roberta", folder, "text_encoder.kind = 'roberta'"),
    ]:
        assert train(shapes, tmp_path / "run", kind, path) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run" / "autoencoder").exists()
