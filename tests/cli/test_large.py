"""`langevin upscale`, `cascade` and `large`, from the command line to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import MakeBundle

from langevin.checkpoints import original
from langevin.cli import main as cli
from langevin.images.png import read_png


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels, "RGB").save("small.png")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # reproduce takes the picture's


@pytest.fixture(scope="module")
def upscaler_file(make_upscaler: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upscaler") / "upscaler.safetensors"
    original.write(make_upscaler(), path)
    return path


def test_upscale_writes_each_seed_and_what_it_was_made_from(
    upscaler_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["upscale", "small.png", "a red apple", "--steps", "2", "-m", str(upscaler_file)]
    assert cli.run([*command, "--noise-level", "40", "--seed", "7", "--count", "2", "-o", "large.png"]) == 0
    assert capsys.readouterr() == ("large-0.png\nlarge-1.png\n", "")
    picture, manifest = read_png("large-1.png")
    assert picture.size == (32, 24)
    assert manifest["task"] == "upscaling" and manifest["request"]["noise_level"] == 40
    assert (manifest["request"]["seed"], manifest["inputs"][0]["name"]) == (8, "small.png")
    assert cli.run([*command, "--noise-level", "40", "--seed", "8", "-o", "alone.png"]) == 0
    assert read_png("alone.png")[0].tobytes() == picture.tobytes()
    assert cli.run(["reproduce", "large-1.png", "--verify", "-m", str(upscaler_file)]) == 0


def test_upscale_without_a_prompt(upscaler_file: Path) -> None:
    assert cli.run(["upscale", "small.png", "--steps", "1", "-m", str(upscaler_file), "-o", "large.png"]) == 0
    assert read_png("large.png")[1]["request"]["prompt"] == ""


def test_cascade_writes_both_and_both_can_be_made_again(
    model_file: Path, upscaler_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "2", "--width", "16", "--height", "8", "--seed", "5", "-m", str(model_file)]
    assert cli.run(["cascade", "a red apple", *options, "--upscaler", str(upscaler_file), "-o", "a.png"]) == 0
    assert capsys.readouterr() == ("a-small.png\na.png\n", "")
    small, large = read_png("a-small.png"), read_png("a.png")
    assert small[0].size == (16, 8) and large[0].size == (64, 32)
    assert small[1]["task"] == "text-to-image" and small[1]["request"]["seed"] == 5
    assert large[1]["inputs"][0]["name"] == "a-small.png"
    assert cli.run(["reproduce", "a-small.png", "--verify", "-m", str(model_file)]) == 0
    assert cli.run(["reproduce", "a.png", "--verify", "-m", str(upscaler_file)]) == 0


def test_large_says_what_its_passes_were(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "2", "--seed", "5", "--guidance", "1", "-m", str(model_file)]
    assert cli.run(["large", "a red apple", "--hires", "1.5", *options, "-o", "a.png"]) == 0
    out, err = capsys.readouterr()
    assert out == "a.png\n"
    assert err.startswith("notice: first pass 32 x 32, then 48 x 48 in 1 step from sigma")
    picture, manifest = read_png("a.png")
    assert picture.size == (48, 48) and manifest["request"]["seed"] == 5
    assert cli.run(["reproduce", "a.png", "--verify", "-m", str(model_file)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upscale", "none.png"], "none.png does not exist"),
        (["upscale", "small.png", "-o", "a.png"], "is for text-to-image: give an upscaler"),
        (["upscale", "small.png", "--noise-level", "-1"], "noise_level -1 is out of bounds"),
        (["cascade", "x", "--upscaler", "none.safetensors"], "'none.safetensors': no such file or folder"),
        (["large", "x", "--width", "32", "--height", "32", "-o", "a.png"], "is not larger than the model's"),
        (["large", "x", "--hires", "1"], "hires 1.0 is out of bounds: give 1.01 to 16"),
    ],
)
def test_what_is_wrong_is_one_line(
    model_file: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*arguments, "-m", str(model_file)]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out
    assert not Path("a.png").exists()
