"""`langevin evaluate` from the command line: whole evaluations, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import randomise

from langevin.checkpoints.classifier_file import ClassifierFacts, write_classifier
from langevin.checkpoints.clip_files import ClipConfig, write_clip
from langevin.cli import evaluate as command
from langevin.cli.main import run as langevin
from langevin.evaluation.run import Metric
from langevin.evaluation.sets import SetMetric
from langevin.model.tokenizer import Tokenizer
from langevin.networks.classifier import Classifier, ClassifierConfig
from langevin.networks.clip import Clip, ClipImage, ClipImageConfig, ClipText, ClipTextConfig
from langevin.training.data.shapes import write_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty captioned scenes of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder, 20, size=32, seed=1)
    return folder


@pytest.fixture(scope="module")
def clip(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a clip.safetensors: four features."""
    folder = tmp_path_factory.mktemp("clip")
    config = ClipConfig(
        text=ClipTextConfig(
            vocabulary=len(tokenizer), width=32, layers=1, heads=2, mlp_width=32, projection=4, eos_token=tokenizer.eos
        ),
        image=ClipImageConfig(image_size=32, patch_size=8, width=32, layers=1, heads=2, mlp_width=32, projection=4),
    )
    network = Clip(ClipText(config.text), ClipImage(config.image))
    randomise(network, 0)
    write_clip(network, config, tokenizer, folder / "clip.safetensors")
    return folder


def classifier(folder: Path, size: int) -> Path:
    config = ClassifierConfig(size=size, widths=(8,), features=5, classes=3)
    network = Classifier(config)
    randomise(network, 1)
    path = folder / "classifier.safetensors"
    facts = ClassifierFacts(network=config, class_names=(), accuracy=0.5, held_out=10, data="")
    write_classifier(network, facts, path)
    return path


def evaluate(*words: object) -> int:
    return langevin(["evaluate", *map(str, words)])


def test_a_model_is_measured_with_everything_beside_its_figures(
    model_file: Path, data: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    extractor = classifier(tmp_path, 32)
    words = (model_file, "--data", data, "--features", f"clip={clip}", "--features", f"classifier={extractor}",
             "--steps", 2, "--samples", 8, "--seed", 5, "-o", out)  # fmt: skip
    assert evaluate(*words) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    names = {f["name"] for f in report["figures"]}
    assert {"frechet distance", "kernel distance", "recall", "coverage", "class score", "clip score", "psnr"} <= names
    assert {"alignment: clear", "alignment: everything", "alignment: colour"} <= names
    for figure in report["figures"]:
        assert figure["seed"] == 5 and figure["name"] in printed
        if figure["extractor"]:
            assert len(figure["weights_sha256"]) == 64 and figure["generated"] == 8 and figure["real"] is not None
    by_name = {f["name"]: f for f in report["figures"]}
    assert by_name["alignment: everything"]["real"] == 1 and by_name["psnr"]["generated"] == 0
    made = report["subject"]["generation"]
    assert made["request"]["steps"] == 2 and made["seed"] == 5 and report["subject"]["model"]["files"][0]["sha256"]
    assert report["data"]["pictures"] == 20 and len(report["data"]["fingerprint"]) == 64
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    folder = tmp_path / "report-pictures"
    assert len(list(folder.glob("*.png"))) == 8

    # Again, from the pictures that are there: by the same command, and as given pictures.
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    assert evaluate(*words) == 0
    again = json.loads(out.read_text())
    assert again["figures"] == report["figures"]
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")} == times
    assert evaluate("--pictures", folder, "--data", data, "--features", f"clip={clip}", "--seed", 5,
                    "-o", tmp_path / "given.json") == 0  # fmt: skip
    given = {f["name"]: f for f in json.loads((tmp_path / "given.json").read_text())["figures"]}
    for name in ("frechet distance", "clip score", "alignment: everything"):
        found = next(f for f in report["figures"] if f["name"] == name and f["extractor"] == given[name]["extractor"])
        assert given[name]["value"] == found["value"]
    assert "psnr" not in given


def test_without_a_floor_the_reference_is_all_of_the_data(
    model_file: Path, data: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    assert evaluate(model_file, "--data", data, "--features", f"clip={clip}", "--metrics", "kernel", "--no-floor",
                    "--samples", 25, "--steps", 1, "--batch", 25, "-o", out) == 0  # fmt: skip
    (figure,) = json.loads(out.read_text())["figures"]
    assert (figure["generated"], figure["reference"], figure["real"]) == (25, 20, None)


def test_one_metric_alone_makes_no_pictures(model_file: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert evaluate(model_file, "--data", data, "--metrics", "reconstruction", "-o", out) == 0
    report = json.loads(out.read_text())
    assert [f["name"] for f in report["figures"]] == ["psnr", "ssim"] and report["figures"][0]["reference"] == 10
    assert not (tmp_path / "report-pictures").exists()


def test_wrong_combinations_are_one_line_each(
    model_file: Path, data: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, real, tower = str(model_file), ["--data", str(data)], ["--features", f"clip={clip}"]
    small = ["--features", f"classifier={classifier(tmp_path, 16)}"]
    given = ["--pictures", str(data)]
    plain = tmp_path / "classes" / "red"
    plain.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(plain / "1.png")
    for words, message in [
        ([model], "evaluate needs real pictures: give --data"),
        ([model, *real, "--model", model], "the model was given twice"),
        ([model, *real, "--metrics", "fid"], "metric 'fid' is unknown; choose from frechet"),
        ([model, *real, "--metrics", "frechet"], "metric frechet needs features"),
        ([model, *real, *tower, "--metrics", "inception-score"], "metric inception-score needs classes"),
        ([model, *real, "--features", "inception"], "features 'inception' is unknown"),
        ([model, *real, *small], "takes 16 x 16 pixels, not 32"),
        ([model, *real, *small, "--metrics", "clip-score", "--size", "16"], "clip-score needs both towers"),
        ([model, *real, "--metrics", "bits"], "metric bits is of pixels: model tiny works on latents"),
        ([model, *real, *tower, "--samples", "11"], "samples 11: the figures and their floor need twice"),
        ([model, *real, *tower, "--samples", "1"], "samples 1 is out of range"),
        ([model, *real, *tower, "--samples", "3", "--metrics", "frechet", "--steps", "1"], "3 samples are too few"),
        ([model, *real, *tower, "--steps", "0"], "steps 0"),
        ([model, *real, *tower, "--sampler", "magic"], "sampler 'magic'"),
        ([model, *real, "--include", "split"], "include 'split': write it as FIELD=VALUE"),
        ([model, *real, "--include", "split=nowhere"], "none of the samples"),
        (
            [model, "--data", str(plain.parent), "--metrics", "alignment"],
            "metric alignment is of the shapes data alone",
        ),
        ([model, *real, *tower, "-o", "report.txt"], "is not a .json file"),
        ([model, *real, *tower, *given], "--pictures is measured instead of a model: leave out a model"),
        ([*real, *tower, *given, "--steps", "3"], "leave out --steps"),
        ([*real, *tower, *given], "there are no pictures in"),
        ([*real, "--pictures", str(tmp_path / "nothing")], "is not a folder"),
    ]:
        if "-o" not in words:
            words = [*words, "-o", str(tmp_path / "report.json")]
        assert evaluate(*words) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (words, error)


def test_the_words_of_the_command_are_the_librarys() -> None:
    assert tuple(m.value for m in Metric) == command.METRICS
    assert {m.value for m in SetMetric} < set(command.METRICS)
