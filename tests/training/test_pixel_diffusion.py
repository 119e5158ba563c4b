"""Pixel models from a data set to pictures, by way of the command line."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import langevin
from langevin.checkpoints.loader import load_bundle
from langevin.cli.main import run as command
from langevin.errors import DataError, RequestError
from langevin.training.config import override
from langevin.training.data import read_data
from langevin.training.recipes import RECIPES

TINY = [
    "data.size=8", "diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1, 1]",
    "diffusion.network.attention_levels=[false, true]", "diffusion.loop.steps=6", "diffusion.loop.batch_size=8",
    "diffusion.loop.save_every=3", "diffusion.loop.log_every=2", "diffusion.loop.precision=float32",
]  # fmt: skip
NAMES = ("dark", "bright", "left")


def idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes())


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty grey pictures of 8 x 8 in three classes, in the files of MNIST."""
    folder = tmp_path_factory.mktemp("grey")
    chance = np.random.default_rng(0)
    labels = (np.arange(30) % 3).astype(np.uint8)
    pictures = chance.integers(0, 40, (30, 8, 8))
    pictures[labels == 1] += 200
    pictures[labels == 2, :, :4] += 200
    idx(folder / "train-images-idx3-ubyte", pictures.astype(np.uint8))
    idx(folder / "train-labels-idx1-ubyte", labels)
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def train(recipe: str, data: Path, out: Path, *more: str, resume: bool = False) -> int:
    settings = [part for s in (*TINY, *more) for part in ("--set", s)]
    rest = ["--resume"] if resume else []
    return command(["train", recipe, "--data", str(data), "--out", str(out), "--device", "cpu", *settings, *rest])


BY_CLASS = "diffusion.network.num_classes=4"


@pytest.fixture(scope="module")
def by_class(grey: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a class-conditional model with learned variance."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train("iddpm-fashion", grey, out, BY_CLASS) == 0
    return out


def test_the_file_holds_the_averaged_weights_and_all_that_is_needed_to_run_them(by_class: Path) -> None:
    bundle = load_bundle(by_class / "model.safetensors")
    assert bundle.classes == NAMES
    assert (bundle.info.task, bundle.info.default_size, bundle.info.default_guidance) == ("class-to-image", (8, 8), 1.5)
    assert bundle.autoencoder is None and bundle.text is None and bundle.diffusion.learned_variance
    assert len(bundle.diffusion.schedule) == 1000 and bundle.diffusion.prediction.value == "epsilon"
    averaged = load_file(by_class / "diffusion" / "checkpoints" / "00000006" / "ema.safetensors")
    loaded = bundle.diffusion.network.state_dict()
    assert loaded.keys() == averaged.keys()
    assert all(torch.equal(loaded[name], value) for name, value in averaged.items())
    row = json.loads((by_class / "diffusion" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "unweighted", "bound"} <= row.keys()


def test_a_class_is_drawn_by_its_name_or_its_number(by_class: Path) -> None:
    model = langevin.load(by_class / "model.safetensors")
    named, numbered = (model.generate(label=x, steps=3, seed=5) for x in ("bright", 1))
    assert named.images[0].size == (8, 8) and named.images[0].mode == "RGB"
    assert named.images[0].tobytes() == numbered.images[0].tobytes()
    assert float(named.latents.abs().max()) <= 1
    x = torch.linspace(-0.4, 0.4, 64).view(1, 1, 8, 8)
    for guidance in (1.0, 3.0):
        found = [model.plan(label=k, guidance=guidance).denoiser(x, 0.5) for k in ("bright", 1, "2")]
        assert torch.equal(found[0].x0, found[1].x0) and not torch.equal(found[0].x0, found[2].x0)
    assert found[0].variance_fraction is not None
    pixels = np.asarray(named.images[0])
    assert (pixels == pixels[..., :1]).all()
    assert named.latents.shape == (1, 1, 8, 8)
    assert model.generate(label=0, steps=3, sampler="ddpm", sampler_options={"variance": "learned"}).images
    together = model.generate(label=0, steps=2, seeds=[5, 6])
    assert torch.equal(together.latents[1:], model.generate(label=0, steps=2, seed=6).latents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "label is missing: model model draws classes, give a number from 0 to 2 or one of: dark, bright, left"),
        ({"label": "brigt"}, "label 'brigt' is not known.*did you mean 'bright'"),
        ({"label": 3}, "label 3 is out of bounds: give a number from 0 to 2"),
        ({"label": "3"}, "label 3 is out of bounds"),
        ({"label": "²"}, "label '²' is not known"),
        ({"label": 0, "prompt": "a cat"}, "prompt 'a cat': model model takes no text, give a label"),
        ({"label": 0, "negative": "a cat"}, "negative 'a cat': model model takes no text"),
        ({"label": 0, "clip_skip": 1}, "clip_skip 1: model model takes no text"),
        ({"label": -1}, "label -1"),
    ],
)
def test_what_a_model_of_classes_cannot_do_is_said(by_class: Path, options: dict[str, Any], message: str) -> None:
    model = langevin.load(by_class / "model.safetensors")
    with pytest.raises(RequestError, match=message):
        model.plan(**options)


def test_from_the_command_line_and_back(
    by_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(by_class / "model.safetensors")]
    assert command(["generate", *model, "--label", "left", "--steps", "2", "--seed", "3"]) == 0
    assert Path("left-3.png").is_file()
    assert command(["reproduce", "left-3.png", "--verify", *model]) == 0
    capsys.readouterr()
    assert command(["explain", *model, "--label", "left", "--steps", "2"]) == 0
    assert "2 calls: 2 on 2 pictures" in capsys.readouterr().out
    assert command(["explain", *model]) == 2
    assert command(["info", model[1]]) == 0
    out = capsys.readouterr().out
    assert "a diffusion model of pixels" in out and "dark, bright, left" in out
    assert command(["convert", model[1], str(tmp_path / "folder"), "--to", "diffusers"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_classes_nothing_is_asked_for(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("edm-fashion", grey, tmp_path / "run") == 0
    path = tmp_path / "run" / "model.safetensors"
    model = langevin.load(path)
    assert model.info.task == "unconditional" and model.bundle.diffusion.sigma_data == 0.7
    schedule = model.bundle.diffusion.schedule
    assert (schedule.sigma_min, schedule.sigma_max) == (pytest.approx(0.002), pytest.approx(80))
    assert len(model.generate(steps=2, seeds=[1, 2]).images) == 2
    for options, message in [
        ({"label": 1}, "label 1: model model knows no classes"),
        ({"prompt": "x"}, "prompt 'x': model model takes no text, leave it out"),
        ({"guidance": 2.0}, "guidance 2.0: model model was not trained without a class, give 1"),
    ]:
        with pytest.raises(RequestError, match=message):
            model.plan(**options)  # type: ignore[arg-type]
    assert command(["generate", "-m", str(path), "--steps", "2", "-o", str(tmp_path / "x.png")]) == 0


def test_a_text_model_still_wants_a_prompt_and_no_label(model_file: Path) -> None:
    model = langevin.load(model_file)
    with pytest.raises(RequestError, match="prompt is missing: say what to draw"):
        model.plan()
    with pytest.raises(RequestError, match="label 'x': model tiny knows no classes"):
        model.plan("a cat", label="x")


def test_levels_that_learn_resume_to_the_very_same_weights(grey: Path, tmp_path: Path) -> None:
    """Importance sampling: eight timesteps, whose history is full after some steps, across a stop."""
    more = (
        "diffusion.schedule.kind=cosine", "diffusion.schedule.steps=8", "diffusion.levels.name=importance",
        "diffusion.levels.history=2", "diffusion.loop.steps=16", "diffusion.noise_offset=0.1",
        "diffusion.input_perturbation=0.1",
    )  # fmt: skip
    assert train("ddpm-fashion", grey, tmp_path / "whole", *more) == 0
    from langevin.training.pixel_diffusion import PixelDiffusion

    config = override(RECIPES["ddpm-fashion"](), [*TINY, *more])
    assert isinstance(config, PixelDiffusion)
    data = read_data(grey, config.data)
    for step in (steps := config.train_stage("diffusion", data, tmp_path / "cut", device="cpu", resume=False)):
        if step.step == 11:
            steps.close()
    assert train("ddpm-fashion", grey, tmp_path / "cut", *more, resume=True) == 0
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    last = load_file(tmp_path / "cut" / "diffusion" / "checkpoints" / "00000016" / "weights.safetensors")
    assert last["levels.seen"].min() >= 2 and last["levels.seen"].sum() == 16 * 8
    uniform = load_file(tmp_path / "whole" / "diffusion" / "checkpoints" / "00000016" / "ema.safetensors")
    assert torch.equal(uniform["levels.losses"], last["levels.losses"])


def test_colours_from_class_folders(tmp_path: Path) -> None:
    for name, colour in (("blue", "blue"), ("red", "red")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / name / f"{i}.png")
    more = ("data.include={}", "diffusion.network.num_classes=2")
    assert train("v-shapes", tmp_path / "data", tmp_path / "run", *more) == 0
    model = langevin.load(tmp_path / "run" / "model.safetensors")
    assert model.bundle.classes == ("blue", "red")
    assert model.generate(label="red", steps=2, seed=0).latents.shape == (1, 3, 8, 8)
    with pytest.raises(RequestError, match="was not trained without a class"):
        model.plan(label="red", guidance=2.0)


def test_data_that_does_not_fit_the_network_is_refused(
    grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("iddpm-fashion", grey, tmp_path / "a", "diffusion.network.num_classes=3") == 2
    assert "has the label 2; the network has the classes 0 to 1" in capsys.readouterr().err
    (tmp_path / "coloured").mkdir()
    picture, record = io.BytesIO(), json.dumps({"caption": "x", "split": "train"}).encode()
    Image.new("RGB", (8, 8), "red").save(picture, format="PNG")
    with tarfile.open(tmp_path / "coloured" / "a.tar", "w") as tar:
        for name, content in (("1.png", picture.getvalue()), ("1.json", record)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert train("ddpm-fashion", tmp_path / "coloured", tmp_path / "b") == 2
    assert "picture 0 of the data has colours, and the network has 1 channel" in capsys.readouterr().err
    assert train("iddpm-fashion", tmp_path / "coloured", tmp_path / "c") == 2
    assert "has the label None" in capsys.readouterr().err


def test_class_names_are_captions_where_these_are_one_for_each_label() -> None:
    from langevin.training.data import PictureSet
    from langevin.training.objectives.pixels import class_names

    def names(*records: tuple[str, int], count: int) -> tuple[str, ...]:
        pictures = torch.zeros(len(records), 3, 8, 8, dtype=torch.uint8)
        return class_names(PictureSet(pictures, [{"caption": c, "label": k} for c, k in records], ""), count)

    assert names(("cat", 0), ("cat", 0), ("dog", 1), count=2) == ("cat", "dog")
    assert names(("a cat", 0), ("the cat", 0), ("dog", 1), count=3) == ("0", "dog", "2")
    assert names(("cat", 0), ("cat", 1), count=2) == ("0", "1")
    with pytest.raises(DataError, match="picture 1 of the data has the label 2"):
        names(("cat", 0), ("dog", 2), count=2)


@pytest.mark.parametrize(
    ("recipe", "assignment", "message"),
    [
        ("ddpm-fashion", "diffusion.network.out_channels=2", "network.out_channels 2 must be 1: in_channels$"),
        ("ddpm-fashion", "diffusion.learned_variance=true", "out_channels 1 must be 2: in_channels twice"),
        ("iddpm-fashion", "diffusion.levels.name=log_normal", "learned_variance true needs timesteps"),
        ("iddpm-fashion", "diffusion.noise_offset=0.1", "noise_offset 0.1 with learned_variance"),
        ("ddpm-fashion", "diffusion.schedule.zero_terminal_snr=true", "epsilon says nothing of the picture at the end"),
        ("ddpm-fashion", "diffusion.label_dropout=0.1", "num_classes null has no labels"),
        ("iddpm-fashion", "diffusion.label_dropout=0", "guidance 1.5 needs a label_dropout above 0"),
        ("iddpm-fashion", "diffusion.network.num_classes=1", "num_classes 1: 1 of them is for no class"),
        ("ddpm-fashion", "diffusion.network.in_channels=4", "in_channels 4: 1 for grey pictures, 3 for colours"),
        ("ddpm-fashion", "diffusion.network.context_channels=8", "context_channels 8: pixel models take no text"),
        ("ddpm-fashion", "diffusion.schedule.steps=1", "a schedule of 1 steps"),
        ("ddpm-fashion", "diffusion.gamma=2.0", "gamma 2.0 has no meaning with weighting snr"),
        ("ddpm-fashion", "diffusion.levels.mean=2.0", "diffusion.levels: mean 2.0 has no meaning with uniform"),
        ("ddpm-fashion", "diffusion.weighting=min_snrr", "diffusion.weighting = 'min_snrr'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(recipe: str, assignment: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        override(RECIPES[recipe](), [assignment])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
