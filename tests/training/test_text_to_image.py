"""The three stages on a small data set, from the command line to a picture."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langevin.checkpoints.loader import load_bundle
from langevin.cli.main import run as langevin
from langevin.training.data import DataConfig, read_data
from langevin.training.recipes import RECIPES
from langevin.training.text_to_image import TextToImageConfig

TINY = [
    *TextToImageConfig.trial, 'data.include={"split": ["train"]}', "data.exclude={}",
    "autoencoder.loop.steps=6", "autoencoder.loop.batch_size=4", "autoencoder.loop.save_every=3",
    "autoencoder.loop.log_every=2", "clip.loop.steps=6", "clip.loop.batch_size=8", "clip.loop.save_every=3",
    "clip.loop.log_every=2", "diffusion.loop.steps=6", "diffusion.loop.batch_size=4", "diffusion.loop.save_every=3",
    "diffusion.loop.log_every=2", 'diffusion.include={"style": ["flat"]}',
]  # fmt: skip


def train(shapes: Path, out: Path, *more: str) -> int:
    settings = [part for s in TINY for part in ("--set", s)]
    return langevin(["train", "emoji", "--data", str(shapes), "--out", str(out), "--device", "cpu", *settings, *more])


@pytest.fixture(scope="module")
def run_folder(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(shapes, out) == 0
    return out


def test_a_run_leaves_papers_curves_previews_and_a_model(run_folder: Path) -> None:
    papers = json.loads((run_folder / "run.json").read_text())
    assert papers["recipe"] == "emoji" and papers["data"]["pictures"] == 22
    assert papers["config"]["clip"]["text"]["width"] == 32
    for stage in ("autoencoder", "clip", "diffusion"):
        names = {p.name for p in (run_folder / stage).iterdir()}
        assert {"metrics.jsonl", "metrics.png", "preview-00000006.png", "checkpoints"} <= names


def test_the_model_file_loads_and_makes_the_picture_of_its_own_weights(run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "model.safetensors"
    bundle = load_bundle(path)
    assert bundle.info.default_size == (32, 32) and bundle.info.prediction.value == "v"
    ema = load_file(run_folder / "diffusion" / "checkpoints" / "00000006" / "ema.safetensors")
    loaded = bundle.diffusion.network.state_dict()
    assert loaded.keys() == ema.keys()
    for name, value in ema.items():
        assert torch.equal(loaded[name], value.half().float()), name
    picture = tmp_path / "circle.png"
    assert langevin(["generate", "a red circle", "--model", str(path), "-o", str(picture), "--steps", "2"]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_run_in_two_sittings_reaches_the_same_weights(run_folder: Path, shapes: Path, tmp_path: Path) -> None:
    """Interrupted in the last stage, whose steps draw on every stream: order, captions, noise, timesteps."""
    from langevin.training.system import System

    out = tmp_path / "cut"
    for stage in ("autoencoder", "clip"):
        assert train(shapes, out, "--stage", stage) == 0
    original = System.train_stage

    def interrupted(*args: object, **kwargs: object) -> object:
        import os
        import signal

        for step in original(*args, **kwargs):  # type: ignore[arg-type]
            if step.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(System, "train_stage", interrupted)
        assert train(shapes, out, "--stage", "diffusion") == 130
    assert train(shapes, out, "--stage", "diffusion") == 2  # it holds a run, and --resume was not said
    assert train(shapes, out, "--stage", "diffusion", "--resume") == 0
    assert (out / "model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()


def test_wrong_words_are_one_line_and_exit_code_2(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in [
        (["train"], "train needs a recipe"),
        (["train", "nonsense", "--data", str(shapes), "--out", str(tmp_path)], "recipe 'nonsense' is unknown"),
        (["train", "emoji", "--data", str(tmp_path), "--out", str(tmp_path / "r")], "there is no data set"),
        (
            ["train", "emoji", "--data", str(shapes), "--out", str(tmp_path), "--stage", "unet"],
            "stage 'unet' is unknown",
        ),
    ]:
        assert langevin(arguments) == 2
        assert message in capsys.readouterr().err
    assert train(shapes, tmp_path / "r", "--stage", "diffusion") == 2
    assert "is not finished: train --stage autoencoder first" in capsys.readouterr().err


def test_the_denoiser_may_learn_from_some_of_the_pictures(shapes: Path, run_folder: Path) -> None:
    data = read_data(shapes, DataConfig(size=32))
    flat = data.only({"style": ("flat",)})
    assert len(flat) == 12 and {r["style"] for r in flat.records} == {"flat"} and flat.fingerprint != data.fingerprint
    first = next(i for i, r in enumerate(data.records) if r["style"] == "flat")
    assert torch.equal(flat.pictures[0], data.pictures[first])
    rest = data.only({}, {"style": ("flat",)})
    assert len(rest) == len(data) - 12 and "flat" not in {r["style"] for r in rest.records}
    assert len({data.fingerprint, flat.fingerprint, rest.fingerprint}) == 3
    assert rest.fingerprint != data.only({"style": ("flat",)}, {"style": ("oil",)}).fingerprint != flat.fingerprint
    papers = [json.loads((p / "state.json").read_text()) for p in run_folder.glob("*/checkpoints/00000006")]
    seen = {p["facts"]["data"] for p in papers}
    assert len(papers) == 3 and len(seen) == 2  # autoencoder and CLIP saw all


def test_a_choice_that_leaves_the_denoiser_nothing_is_refused_before_the_first_stage(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(shapes, tmp_path / "r", "--set", 'diffusion.include={"style": ["oil"]}') == 2
    assert 'none of the 22 pictures has {"style": ["oil"]}' in capsys.readouterr().err
    both = ["--set", 'diffusion.include={"style": ["flat"]}', "--set", 'diffusion.exclude={"style": ["flat"]}']
    assert train(shapes, tmp_path / "r", *both) == 2
    assert 'has {"style": ["flat"]} and not {"style": ["flat"]}' in capsys.readouterr().err
    assert not list((tmp_path / "r").glob("*/checkpoints/*"))


def no_stage(*args: object, **kwargs: object) -> None:
    raise AssertionError("training began")


def test_what_can_be_refused_is_refused_before_training(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import langevin.training.plots as plots
    from langevin.training.system import System

    monkeypatch.setattr(System, "train_stage", no_stage)
    file = tmp_path / "file"
    file.write_text("")
    for out, more, message in [
        (tmp_path / "r", ("--device", "cuda:77"), "device 'cuda:77' is not available"),
        (tmp_path / "r", ("--device", "gpu"), "device 'gpu' is not available"),
        (file, (), "file cannot be written (File exists): give another --out"),
        (file / "r", (), "cannot be written (Not a directory): give another --out"),
    ]:
        assert train(shapes, out, *more) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert train(shapes, tmp_path / "r") == 2
    assert "with matplotlib, which is missing" in capsys.readouterr().err


def test_a_further_sitting_has_to_fit_the_first(
    run_folder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that no checkpoint knows of: the prediction type, sizes that leave the weights' shapes as they are."""
    out = tmp_path / "run"
    for stage in ("autoencoder", "clip"):
        shutil.copytree(run_folder / stage, out / stage)
    shutil.copy(run_folder / "run.json", out)
    before = (out / "run.json").read_bytes()
    for setting, message in [
        ("clip.text.heads=1", "was begun with clip.text.heads = 2, not 1"),
        ("seed=1", "was begun with seed = 0, not 1"),
        ("captions.style_share=0.25", "was begun with captions.style_share = 0.5, not 0.25"),
    ]:
        assert train(shapes, out, "--resume", "--set", setting) == 2
        assert message in capsys.readouterr().err
        assert (out / "run.json").read_bytes() == before
    # A stage that has not begun may change; then its options hold too. What only shows may change at any time.
    more = ("--stage", "diffusion", "--resume", "--set", "clip.loop.log_every=1", "--set")
    assert train(shapes, out, *more, "diffusion.prediction=epsilon") == 0
    assert "diffusion: nothing to go on from, begins" in capsys.readouterr().err
    assert train(shapes, out, *more, "diffusion.prediction=v") == 2
    assert "was begun with diffusion.prediction = 'epsilon', not 'v'" in capsys.readouterr().err
    assert train(shapes, out, *more, "diffusion.prediction=epsilon", "--set", "diffusion.guidance=2") == 0
    assert "diffusion: goes on from step 6" in capsys.readouterr().err


def test_without_a_terminal_progress_is_lines_and_curves_are_drawn_on_the_way(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import langevin.training.run as command

    drawn = []
    monkeypatch.setattr(command, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(command, "plot_metrics", lambda folder: drawn.append((folder / "metrics.jsonl").read_text()))
    more = ("--stage", "autoencoder", "--tensorboard", "--set", "autoencoder.loop.sample_every=2")
    assert train(shapes, tmp_path / "r", *more) == 0
    assert [len(text.splitlines()) for text in drawn] == [1, 2, 3, 3]
    assert list((tmp_path / "r" / "autoencoder" / "tensorboard").glob("events.*"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("autoencoder ")]
    assert [line.split(":")[0] for line in lines[:3]] == [f"autoencoder {n}/6" for n in (2, 4, 6)]
    assert all("loss" in line and "min left" in line for line in lines[:3])


def test_the_second_ctrl_c_does_not_wait_for_the_step() -> None:
    from langevin.training.run import _interruption

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _interruption() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert langevin(["train", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
