"""The classifier: trained by the one loop, measured on what was held out, opened as an extractor."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from langevin.checkpoints.classifier_file import read_classifier
from langevin.cli.main import run as langevin
from langevin.errors import CheckpointError, DataError
from langevin.evaluation.extractors import open_extractor
from langevin.networks.classifier import Classifier, ClassifierConfig
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.objectives.classifier import ClassifierObjective, Split

SETTINGS = [
    "data.size=16", "classifier.network.size=16", "classifier.network.widths=[8, 16]", "classifier.network.features=12",
    "classifier.network.classes=3", "classifier.loop.steps=60", "classifier.loop.batch_size=16",
    "classifier.loop.learning_rate=0.01", "classifier.loop.warmup=5", "classifier.loop.ema_decay=0.9",
    "classifier.loop.log_every=20", "classifier.loop.save_every=30", "classifier.shift=1",
]  # fmt: skip


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars along, across, and squares; each somewhere in the picture. 90 to train on, 30 held out."""
    folder = tmp_path_factory.mktemp("bars")
    chance = np.random.default_rng(0)
    for split, count in (("train", 90), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 3
        images = chance.integers(0, 40, (count, 16, 16), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            height, width = ((2, 10), (10, 2), (6, 6))[label]
            y, x = chance.integers(0, 16 - height), chance.integers(0, 16 - width)
            image[y : y + height, x : x + width] = 255
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    (folder / "labels.txt").write_text("along\nacross\nsquare\n")
    return folder


def train(data: Path, out: Path, *more: str) -> int:
    settings = [part for s in SETTINGS for part in ("--set", s)]
    return langevin(
        ["train", "classifier-fashion", "--data", str(data), "--out", str(out), "--device", "cpu", *settings, *more]
    )


@pytest.fixture(scope="module")
def trained(bars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "classifier"
    assert train(bars, out) == 0
    return out


def test_it_learns_and_says_how_well(trained: Path, bars: Path) -> None:
    network, facts = read_classifier(trained / "model.safetensors")
    figures = json.loads((trained / "held-out.json").read_text())
    assert figures["held_out"] == facts.held_out == 30 and figures["accuracy"] == facts.accuracy
    assert facts.class_names == ("along", "across", "square") and set(figures["classes"]) == {"0", "1", "2"}
    data = read_data(bars, DataConfig(size=16, include={"split": ("t10k",)}))
    with torch.no_grad():
        said = network(data.images(range(30))).logits.argmax(1)
    right = (said == torch.tensor([r["label"] for r in data.records])).double().mean()
    assert float(right) == pytest.approx(facts.accuracy) and facts.accuracy > 0.8
    assert list((trained / "classifier").glob("preview-*.png"))


def test_a_cut_run_reaches_the_same_file(trained: Path, bars: Path, tmp_path: Path) -> None:
    from langevin.training.system import System

    original = System.train_stage

    def stopped(*args: object, **kwargs: object) -> object:
        for step in original(*args, **kwargs):  # type: ignore[arg-type]
            yield step
            if step.step == 37:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(System, "train_stage", stopped)
        assert train(bars, tmp_path / "run") == 130
    assert train(bars, tmp_path / "run", "--resume") == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_it_is_an_extractor_with_classes(trained: Path, bars: Path) -> None:
    opened = open_extractor(f"classifier={trained / 'model.safetensors'}")
    data = read_data(bars, DataConfig(size=16))
    seen = opened.views(data.pictures, batch=50)
    assert seen.features.shape == (120, 12) and seen.probabilities is not None
    assert seen.probabilities.shape == (120, 3) and torch.allclose(seen.probabilities.sum(1), torch.ones(120))
    assert opened.size == 16 and "3 classes" in opened.name and len(opened.sha256) == 64
    with pytest.raises(DataError, match="takes pictures of 16 x 16 pixels"):
        opened.views(torch.zeros(2, 3, 20, 20, dtype=torch.uint8))


def test_samples_are_moved_and_mirrored_by_their_own_stream(bars: Path) -> None:
    data = read_data(bars, DataConfig(size=16))
    network = Classifier(ClassifierConfig(size=16, widths=(8,), features=4, classes=3))
    objective = ClassifierObjective(network, data, {"split": ("t10k",)}, seed=0, shift=2, mirror=True, device="cpu")
    whole, _ = objective.loss([(0, 1), (0, 2), (1, 5), (1, 1)], 3)
    halves = [objective.loss(part, 3)[0] for part in ([(0, 1), (0, 2)], [(1, 5), (1, 1)])]
    assert torch.allclose(whole, (halves[0] + halves[1]) / 2, rtol=1e-5)
    assert objective.count == 90
    image = torch.arange(16.0).expand(1, 16, 16)
    seen = {tuple(objective._augmented(image, torch.Generator().manual_seed(i))[0, 0].tolist()) for i in range(60)}
    rising = [row for row in seen if row[0] < row[-1]]
    assert len(seen) == 10 and len(rising) == 5  # five shifts, each mirrored too
    assert {row[8] - 8 for row in rising} == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_unfit_data_is_refused(bars: Path) -> None:
    data = read_data(bars, DataConfig(size=16))
    unlabelled = PictureSet(data.pictures, [{"caption": "a bar", "split": "t10k"}] * len(data), data.fingerprint)
    with pytest.raises(DataError, match="has no label: a classifier needs class folders"):
        Split(unlabelled, {"split": ("t10k",)})
    with pytest.raises(DataError, match="no picture would be held out"):
        Split(data, {"split": ("test",)})
    with pytest.raises(DataError, match="no picture would be held out"):
        Split(data, {})
    small = Classifier(ClassifierConfig(size=16, widths=(8,), features=4, classes=2))
    with pytest.raises(DataError, match=r"labels go up to 2: set classifier.network.classes to 3"):
        ClassifierObjective(small, data, {"split": ("t10k",)}, seed=0, shift=0, mirror=False, device="cpu")


def test_other_files_are_no_classifiers(model_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no classifier: .*langevin train classifier-fashion"):
        read_classifier(model_file)
