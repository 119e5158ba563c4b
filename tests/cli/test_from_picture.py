"""`langevin img2img`, `inpaint` and `outpaint`, and pictures made again that were made from pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.images.test_pasting import random_picture

from langevin.cli import main as cli
from langevin.images.masks import mask_of_box
from langevin.images.pasting import same_outside, stored
from langevin.images.png import pixels_sha256, read_png, write_png


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder with a picture, `house.png`; the pictures' number of threads is taken back."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels, "RGB").save("house.png")
    Image.new("CMYK", (32, 32)).save("cmyk.tiff")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(command: str, model_file: Path, *arguments: str) -> int:
    return cli.run([command, *arguments, "--steps", "2", "-m", str(model_file)])


def test_variations_are_written_with_what_they_came_from_and_made_again(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    Path("house.png").rename("in/house.png")
    assert run("img2img", model_file, "in/house.png", "a red apple", "-o", "a.png", "--seed", "3", "-n", "2") == 0
    assert capsys.readouterr().out == "a-0.png\na-1.png\n"
    manifest = read_png("a-1.png")[1]
    assert manifest["task"] == "image-to-image" and manifest["request"]["strength"] == 0.6
    assert manifest["network_calls"] == 2  # 1.2 of 2 steps
    assert manifest["inputs"] == [
        {"role": "image", "name": "house.png", "mode": "RGB", "width": 32, "height": 32,
         "pixels_sha256": pixels_sha256(Image.open("in/house.png"))}
    ]  # fmt: skip
    assert str(Path.cwd()) not in json.dumps(manifest)
    again = ["reproduce", "a-1.png", "--verify", "-m", str(model_file)]
    assert cli.run([*again, "--inputs", "in"]) == 0
    capsys.readouterr()
    assert cli.run(again) == 2
    assert "the picture's image, house.png, is not in .: say where with --inputs" in capsys.readouterr().err
    Image.new("RGB", (32, 32)).save("house.png")
    assert cli.run(again) == 2
    assert "house.png is not the image that the picture was made from" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["P", "I;16", "RGBA"])
def test_a_repainted_file_is_of_the_mode_of_the_old_and_made_again(model_file: Path, mode: str) -> None:
    given = random_picture(mode, 30, 21, np.random.default_rng(0))
    given.save("given.png")
    Image.fromarray(mask_of_box(30, 21, (3, 3, 20, 18)), "L").save("mask.png")
    assert run("inpaint", model_file, "given.png", "a", "--mask", "mask.png", "-o", "a.png", "--seed", "3") == 0
    again = read_png("a.png")[0]
    assert same_outside(given, again, mask_of_box(30, 21, (3, 3, 20, 18)) > 0)
    assert run("outpaint", model_file, "given.png", "a", "--left", "9", "-o", "b.png", "--seed", "3") == 0
    wide, manifest = read_png("b.png")
    assert wide.size == (39, 21) and stored(wide)[:, 9:].tobytes() == stored(given).tobytes()
    assert set(manifest["picture"]["measured"]) == {"seam_ratio", "seam_step", "inner_step"}
    for name in ("a.png", "b.png"):
        assert cli.run(["reproduce", name, "--verify", "-m", str(model_file)]) == 0
    Image.new("L", (30, 21), 255).save("mask.png")
    assert cli.run(["reproduce", "a.png", "--verify", "-m", str(model_file)]) == 2


@pytest.mark.parametrize(
    ("inputs", "task", "message"),
    [
        ([], "image-to-image", "does not name the image"),
        ([{"role": "image"}], "image-to-image", "malformed"),
        (None, "image-to-image", "was given without a file"),
        ([], "origami", "the picture is of task 'origami'"),
    ],
)
def test_a_manifest_that_names_no_such_input_is_refused(
    model_file: Path, capsys: pytest.CaptureFixture[str], inputs: Any, task: str, message: str
) -> None:
    run("img2img", model_file, "house.png", "a", "-o", "a.png", "--seed", "3")
    picture, manifest = read_png("a.png")
    nameless = [{**manifest["inputs"][0], "name": None}]
    write_png("b.png", picture, {**manifest, "task": task, "inputs": nameless if inputs is None else inputs})
    capsys.readouterr()
    assert cli.run(["reproduce", "b.png", "--verify", "-m", str(model_file)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["img2img", "house.png", "a", "--strength", "1.5"], "strength 1.5 is out of bounds: give 0.01 to 1"),
        (["img2img", "house.png", "a", "--strength", "0"], "strength 0.0 is out of bounds: give 0.01 to 1"),
        (["img2img", "nowhere.png", "a"], "nowhere.png does not exist"),
        (["img2img", "house.png"], "prompt is missing"),
        (["inpaint", "house.png", "a"], "the mask is missing: give one of mask, box, polygon or alpha"),
        (["inpaint", "house.png", "a", "--mask", "nowhere.png"], "nowhere.png does not exist"),
        (["inpaint", "house.png", "a", "--box", "1,1,2"], "box (1, 1, 2) does not fit"),
        (["inpaint", "house.png", "a", "--box", "1,1,9,9", "--strength", "2"], "strength 2.0 is out of bounds"),
        (
            ["inpaint", "cmyk.tiff", "a", "--box", "1,1,9,9"],
            "cmyk.tiff is of mode CMYK, whose pixels no PNG file holds",
        ),
        (["outpaint", "house.png", "a"], "nothing to add: give left, right, top or bottom in pixels, or factor"),
        (["outpaint", "house.png", "a", "--left", "5000"], "left 5000 is out of bounds: give 0 to 4096"),
        (["outpaint", "house.png", "a", "--left", "8", "--factor", "2"], "factor cannot go with left"),
        (["img2img", "house.png", "a", "--steps", "3", "--strength", "0.2", "--compat", "diffusers"], "no step at all"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    model_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.run([*arguments, "-o", "a.png", "-m", str(model_file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not Path("a.png").exists()
