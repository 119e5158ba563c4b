"""`langevin invert`, `regenerate` and `edit`, from the command line to the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.cli import main as cli
from langevin.images.png import read_png


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with a picture, `house.png`; the pictures' number of threads is taken back."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels, "RGB").save("house.png")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_noise_is_written_and_leads_back(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["-m", str(model_file)]
    command = ["invert", "house.png", "a house", "-o", "x.safetensors", "--steps", "2", "--inversion", "bdia", *model]
    assert cli.run(command) == 0
    out, err = capsys.readouterr()
    assert out == "x.safetensors\n" and "the picture comes back with PSNR" in err
    assert str(Path.cwd()).encode() not in Path("x.safetensors").read_bytes()
    assert cli.run(["regenerate", "x.safetensors", "-o", "a.png", *model]) == 0
    assert cli.run(["regenerate", "x.safetensors", "-o", "b.png", "--prompt", "a dog", "-g", "2", *model]) == 0
    (a, told), (b, other) = (read_png(name) for name in ("a.png", "b.png"))
    assert a.tobytes() != b.tobytes()
    assert told["task"] == "regenerate" and told["inputs"][0]["name"] == "house.png"
    assert (other["request"]["prompt"], other["request"]["found_prompt"]) == ("a dog", "a house")
    assert cli.run(["reproduce", "b.png", "--verify", *model]) == 0
    capsys.readouterr()
    assert cli.run(["regenerate", "x.safetensors", "-o", "a.png"]) == 2  # the name in the file, which is not here
    assert cli.run(["regenerate", "house.png", "-o", "a.png", *model]) == 2
    assert "expected a safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["prompt_to_prompt", "diffedit"])
def test_an_edit_is_written_and_made_again(model_file: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    model = ["-m", str(model_file)]
    words = ["--from", "a cat", "--to", "a dog", "--method", method, "--inversion", "ddim", "--steps", "2"]
    extra = ["--emphasis", "dog=2"] if method == "prompt_to_prompt" else ["--mask-samples", "2"]
    assert cli.run(["edit", "house.png", *words, *extra, "-o", "a.png", "-s", "4", *model]) == 0
    out, err = capsys.readouterr()
    assert out == "a.png\n" and "the picture comes back with PSNR" in err
    manifest = read_png("a.png")[1]
    assert any("PSNR" in notice for notice in manifest["notices"]) and manifest["inversion"]["psnr"] > 0
    assert (manifest["request"]["source"], manifest["request"]["prompt"]) == ("a cat", "a dog")
    assert str(Path.cwd()) not in json.dumps(manifest)
    assert cli.run(["reproduce", "a.png", "--verify", *model]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["invert", "house.png", "a", "-o", "x.png"], "output 'x.png' is not a .safetensors file"),
        (["invert", "house.png", "a", "-o", "nowhere/x.safetensors"], "the folder nowhere does not exist"),
        (["invert", "none.png", "a", "-o", "x.safetensors"], "none.png does not exist"),
        (["invert", "house.png", "a"], "missing option '--output' / '-o'"),
        (["invert", "house.png", "a", "-o", "x.safetensors", "--sampler", "lcm"], "cannot be turned round"),
        (["edit", "house.png", "--from", "a"], "prompt is missing: say with --to"),
        (["edit", "house.png", "--to", "a"], "source is missing: say with --from"),
        (["edit", "house.png", "--from", "a", "--to", "b", "--emphasis", "b"], "emphasis 'b' has no value"),
        (["regenerate", "none.safetensors"], "none.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert cli.run(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert sorted(p.name for p in Path().iterdir()) == ["house.png"]
