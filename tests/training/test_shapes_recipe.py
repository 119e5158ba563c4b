"""The shapes from end to end: data made, trained on for a few steps, measured on held-out pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langevin.checkpoints.clip_files import load_clip
from langevin.cli.main import run as langevin
from langevin.training.data import DataConfig, read_data
from langevin.training.data.shapes import HELD_OUT
from langevin.training.recipes import RECIPES

FEW = [
    f"{stage}.loop.{field}" for stage in ("autoencoder", "clip", "diffusion") for field in ("steps=2", "batch_size=4")
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    assert langevin(["shapes", str(folder), "--count", "60", "--held-out", "24"]) == 0
    return folder


@pytest.fixture(scope="module")
def run_folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "shapes"
    settings = [part for s in FEW for part in ("--set", s)]
    assert langevin(["train", "shapes", "--data", str(data), "--out", str(out), "--device", "cpu", *settings]) == 0
    return out


def test_the_recipe_never_sees_a_held_out_pair(data: Path) -> None:
    config = RECIPES["shapes"]().data
    pairs = {(t["shape"], t["colour"]) for r in read_data(data, config).records for t in r["things"]}
    assert len(pairs) > 10 and not pairs & HELD_OUT
    other = read_data(data, DataConfig(size=32, include={"split": ("held-out",)})).records
    assert len(other) == 24
    assert all((r["things"][0]["shape"], r["things"][0]["colour"]) in HELD_OUT for r in other)


def test_both_towers_lie_beside_the_model(run_folder: Path) -> None:
    clip = load_clip(run_folder / "clip.safetensors")
    ema = load_file(run_folder / "clip" / "checkpoints" / "00000002" / "ema.safetensors")
    loaded = {**clip.text.state_dict(), **clip.image.state_dict()}
    assert loaded.keys() == ema.keys() - {"logit_scale"}
    for name, value in loaded.items():
        assert torch.equal(value, ema[name].half().float()), name
    assert clip.tokenizer.decode(clip.tokenizer.encode("a small red circle")) == "a small red circle"


def test_the_model_is_measured_on_held_out_pairs_with_its_own_towers(
    data: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    words = ["evaluate", str(run_folder / "model.safetensors"), "--data", str(data), "--include", "split=held-out",
             "--features", "clip", "--metrics", "alignment,clip-score", "--samples", "9", "--steps", "1"]  # fmt: skip
    assert langevin([*words, "-o", str(out)]) == 0
    report = json.loads(out.read_text())
    figures = {f["name"]: f for f in report["figures"]}
    assert figures["alignment: everything"]["value"] < 0.5 < figures["alignment: everything"]["real"]
    assert figures["clip score"]["extractor"].endswith("/clip") and figures["clip score"]["generated"] == 9
    assert report["data"]["pictures"] == 24 and report["data"]["include"] == {"split": ["held-out"]}


def test_scenes_out_of_bounds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--size", "8"], "size 8 is out of range; it must be from 32 to 256"),
        (["--count", "-1"], "count -1 is out of range"),
        (["--count", "0", "--held-out", "0"], "there is nothing to make"),
    ):
        assert langevin(["shapes", str(tmp_path / "x"), *words]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    assert langevin(["shapes", str(tmp_path / "file"), "--count", "1"]) == 2
    assert "cannot write to" in capsys.readouterr().err
