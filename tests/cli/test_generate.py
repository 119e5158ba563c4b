"""`langevin generate` and `langevin reproduce`, from the command line to the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langevin.checkpoints.embeddings import Embedding, EmbeddingLayout, write_embedding
from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.lora import LoraLayout, write_lora
from langevin.cli import main as cli
from langevin.cli.generate import output_paths
from langevin.images.parameters import parse_parameters
from langevin.images.png import pixels_sha256, read_png, write_png
from langevin.networks.lora import LoraWeights


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # reproduce takes the picture's


def generate(model_file: Path, *arguments: str) -> int:
    return cli.run(["generate", "a red apple", "--steps", "2", "-m", str(model_file), *arguments])


def test_a_picture_with_everything_that_made_it(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(model_file, "-o", "apple.png", "--seed", "3", "--negative", "dog", "--width", "30") == 0
    out, err = capsys.readouterr()
    assert out == "apple.png\n"
    assert err == "notice: 30 x 32 is not a multiple of 4: computed at 32 x 32 and cut\n"
    picture, manifest = read_png("apple.png")
    assert picture.size == (30, 32)
    assert manifest["picture"] == {
        "index": 0, "seed": 3, "width": 30, "height": 32, "pixels_sha256": pixels_sha256(picture),
    }  # fmt: skip
    assert manifest["request"]["prompt"] == "a red apple" and manifest["request"]["steps"] == 2
    assert manifest["request"]["guidance"] == 5.0  # the model's
    assert manifest["model"]["files"] == [
        {"name": "tiny.safetensors", "bytes": model_file.stat().st_size,
         "sha256": hashlib.sha256(model_file.read_bytes()).hexdigest()}
    ]  # fmt: skip
    assert str(model_file.parent) not in json.dumps(manifest)
    assert len(manifest["sigmas"]) == 3 and manifest["timesteps"] == [999.0, 499.0]
    assert manifest["tokens"]["prompt"][0]["ids"] != manifest["tokens"]["negative"][0]["ids"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["notices"] == ["30 x 32 is not a multiple of 4: computed at 32 x 32 and cut"]
    prompt, negative, fields = parse_parameters(str(Image.open("apple.png").info["parameters"]))
    assert (prompt, negative) == ("a red apple", "dog")
    assert fields["Seed"] == "3" and fields["Size"] == "30x32" and fields["Sampler"] == "DPM++ 2M"
    assert fields["Model hash"] == manifest["model"]["files"][0]["sha256"][:10]


def test_a_terminal_shows_progress(
    model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    assert generate(model_file, "-o", "a.png", "--count", "2") == 0
    out, err = capsys.readouterr()
    assert "picture 2/2, step 2" in err and "100%" in err
    assert out == "a-0.png\na-1.png\n"
    assert generate(model_file, "-o", "a.png", "--quiet") == 0
    assert capsys.readouterr() == ("a.png\n", "")


def test_several_pictures_are_numbered_and_are_what_each_is_alone(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_file, "-o", "a.png", "--seed", "7", "--count", "2", "--quiet") == 0
    assert capsys.readouterr() == ("a-0.png\na-1.png\n", "")
    assert generate(model_file, "-o", "b.png", "--seed", "8") == 0
    assert read_png("a-1.png")[0].tobytes() == read_png("b.png")[0].tobytes()
    manifest = read_png("a-1.png")[1]
    assert manifest["picture"]["index"] == 1
    assert (manifest["request"]["seed"], manifest["request"]["count"]) == (8, 1)


def test_an_explicit_file_is_replaced_and_names_in_a_folder_are_not(model_file: Path) -> None:
    assert generate(model_file, "-o", "a.png", "--seed", "1") == 0
    first = Path("a.png").read_bytes()
    assert generate(model_file, "-o", "a.png", "--seed", "2") == 0
    assert Path("a.png").read_bytes() != first
    for _ in range(2):
        assert generate(model_file, "-o", "out/", "--seed", "1") == 0
    assert sorted(os.listdir("out")) == ["a-red-apple-1-2.png", "a-red-apple-1.png"]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A Red, red apple!", "a-red-red-apple-5.png"),
        ("../../etc/passwd", "etc-passwd-5.png"),
        ("", "picture-5.png"),
        ("狐", "picture-5.png"),
        ("x" * 300, "x" * 40 + "-5.png"),
        ("CON", "con-5.png"),
        ("\\\\host\\share .. \u202e", "host-share-5.png"),
    ],
)
def test_names_made_from_prompts_are_plain(prompt: str, name: str) -> None:
    assert output_paths(None, prompt, (5,)) == [(Path(name), False)]


def test_many_pictures_sort_by_their_names() -> None:
    paths = [str(path) for path, _ in output_paths("a.png", "x", tuple(range(11)))]
    assert paths[0] == "a-00.png" and paths == sorted(paths)


def test_reproduce_verifies_and_writes(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(model_file, "-o", "a.png", "--seed", "3", "--sampler", "euler_ancestral", "--count", "2")
    capsys.readouterr()
    assert cli.run(["reproduce", "a-1.png", "--verify", "-o", "b.png", "-m", str(model_file)]) == 0
    assert capsys.readouterr().out == "b.png\na-1.png: the same, pixel for pixel\n"
    assert read_png("b.png")[0].tobytes() == read_png("a-1.png")[0].tobytes()
    shutil.copy(model_file, "tiny.safetensors")  # found by the name in the manifest
    assert cli.run(["reproduce", "a-1.png", "--verify"]) == 0


def test_a_picture_of_a_fast_batch_is_reproduced_in_its_batch(model_file: Path) -> None:
    generate(model_file, "-o", "a.png", "--seed", "3", "--mode", "fast", "--batch-size", "2", "--count", "3")
    manifest = read_png("a-1.png")[1]
    assert manifest["request"]["count"] == 3 and manifest["picture"]["index"] == 1
    assert cli.run(["reproduce", "a-1.png", "--verify", "-m", str(model_file)]) == 0


def test_a_mismatch_is_exit_code_1_and_says_how_large(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(model_file, "-o", "a.png", "--seed", "3")
    picture, manifest = read_png("a.png")
    pixels = np.array(picture)
    pixels[0, 0, 0] ^= 8
    write_png("changed.png", Image.fromarray(pixels), manifest)
    manifest["request"]["seed"] = 4
    write_png("other.png", picture, manifest)
    capsys.readouterr()
    assert cli.run(["reproduce", "changed.png", "--verify", "-m", str(model_file)]) == 1
    assert "it was changed later" in capsys.readouterr().err
    assert cli.run(["reproduce", "other.png", "--verify", "-m", str(model_file)]) == 1
    assert "pixels differ, by" in capsys.readouterr().err


def test_other_weights_are_refused_before_anything_runs(
    model_file: Path, make_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from langevin.checkpoints import original

    generate(model_file, "-o", "a.png")
    original.write(make_bundle(seed=1), "tiny.safetensors")
    capsys.readouterr()
    assert cli.run(["reproduce", "a.png", "--verify"]) == 2
    assert "tiny is not the model that made the picture: no file has SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("request", "steps"), 10**6, "steps 1000000 is out of bounds"),
        (("request", "unheard"), 1, "unknown option 'unheard'"),
        (("request",), [], "malformed"),
        (("picture",), None, "malformed"),
        (("precision",), "int4", "dtype 'int4' is not known"),
        (("device",), "abacus", "device 'abacus' is not available"),
        (("model", "source"), "../../../etc/passwd", "passwd"),
        (("model", "files"), 7, "malformed"),
    ],
)
def test_a_manifest_is_checked_like_a_request(
    model_file: Path, capsys: pytest.CaptureFixture[str], path: tuple[str, ...], value: Any, message: str
) -> None:
    generate(model_file, "-o", "a.png")
    picture, manifest = read_png("a.png")
    place = manifest
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    write_png("b.png", picture, manifest)
    capsys.readouterr()
    arguments = [] if path == ("model", "source") else ["-m", str(model_file)]
    assert cli.run(["reproduce", "b.png", "--verify", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "etc/" not in err


def test_lora_and_embedding_files_are_used_recorded_and_reproduced(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, word = _additions(model_file, tmp_path)
    assert generate(model_file, "-o", "plain.png", "--seed", "3") == 0
    assert generate(model_file, "-o", "a.png", "--seed", "3", "--lora", f"{lora}:0.5", "--embedding", str(word)) == 0
    picture, manifest = read_png("a.png")
    assert pixels_sha256(picture) != pixels_sha256(read_png("plain.png")[0])
    assert manifest["model"]["additions"] == [
        {"kind": "lora", "strength": 0.5, "name": "l.safetensors", "bytes": lora.stat().st_size,
         "sha256": hashlib.sha256(lora.read_bytes()).hexdigest()},
        {"kind": "embedding", "word": "<new>", "name": "w.safetensors", "bytes": word.stat().st_size,
         "sha256": hashlib.sha256(word.read_bytes()).hexdigest()},
    ]  # fmt: skip
    assert str(lora.parent) not in json.dumps(manifest)
    model = ["-m", str(model_file)]
    assert cli.run(["reproduce", "a.png", "--verify", *model, "--additions", str(lora.parent)]) == 0
    capsys.readouterr()
    assert cli.run(["reproduce", "a.png", "--verify", *model]) == 2
    assert "l.safetensors: no such file" in capsys.readouterr().err
    shutil.copytree(lora.parent, tmp_path / "other")
    _additions(model_file, tmp_path / "other", seed=1)
    assert cli.run(["reproduce", "a.png", "--verify", *model, "--additions", str(tmp_path / "other" / "files")]) == 2
    assert "is not the model that made the picture" in capsys.readouterr().err


def test_a_lora_of_strength_nothing_is_none(model_file: Path, tmp_path: Path) -> None:
    lora, _ = _additions(model_file, tmp_path)
    for name, more in (("plain", []), ("none", ["--lora", f"{lora}:0"]), ("twice", ["--lora", str(lora)] * 2)):
        assert generate(model_file, "-o", f"{name}.png", "--seed", "3", *more) == 0
    plain, none, twice = (pixels_sha256(read_png(f"{n}.png")[0]) for n in ("plain", "none", "twice"))
    assert plain == none and plain != twice


def test_explain_knows_new_words_and_refuses_what_does_not_fit(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, word = _additions(model_file, tmp_path)
    command = ["explain", "a <new> apple", "-m", str(model_file), "--json"]
    assert cli.run(command) == 0
    plain = json.loads(capsys.readouterr().out)
    assert cli.run([*command, "--embedding", str(word), "--lora", str(lora)]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = [t["text"] for t in found["prompt"][0]["chunks"][0]]
    assert tokens[1:3] == ["<new>", "<new>_1"] and tokens != [t["text"] for t in plain["prompt"][0]["chunks"][0]]
    assert found["calls"] == plain["calls"]
    assert cli.run([*command, "--lora", str(word)]) == 2
    assert "expected a LoRA" in capsys.readouterr().err


def _additions(model_file: Path, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A LoRA and an embedding of two vectors for the model, in a folder of their own."""
    generator = torch.Generator().manual_seed(seed)
    bundle = load_bundle(model_file)
    name = "middle_block.1.transformer_blocks.0.attn2.to_v"
    rows, columns = bundle.diffusion.network.get_parameter(f"{name}.weight").shape
    weights = LoraWeights(torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator), 4.0)
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    lora = write_lora(files / "l.safetensors", {"unet": {name: weights}}, bundle, LoraLayout.KOHYA, overwrite=True)
    word = Embedding("<new>", torch.randn(2, 32, generator=generator))
    return lora, write_embedding(files / "w.safetensors", word, EmbeddingLayout.DIFFUSERS, overwrite=True)
