"""A small data set of grey pictures in idx files, and a classifier that knows nothing of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from langevin.checkpoints.classifier_file import ClassifierFacts, write_classifier
from langevin.networks.classifier import Classifier, ClassifierConfig
from langevin.training.data import DataConfig, PictureSet, read_data

SIZE = 8
COUNT = 96


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def grey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of bright rectangles on black; the label is the rectangle's height."""
    folder = tmp_path_factory.mktemp("grey")
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = np.zeros((COUNT, SIZE, SIZE), np.uint8)
        labels = random.integers(0, 4, COUNT)
        for image, label in zip(images, labels, strict=True):
            left = random.integers(0, 4)
            image[2 : 3 + label, left : left + 4] = random.integers(100, 256)
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="session")
def grey(grey_folder: Path) -> PictureSet:
    return read_data(grey_folder, DataConfig(size=SIZE, include={"split": ("train",)}))


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    config = ClassifierConfig(size=SIZE, widths=(8, 8), features=6, classes=4)
    torch.manual_seed(0)
    facts = ClassifierFacts(network=config, class_names=("0", "1", "2", "3"), accuracy=0.25, held_out=4, data="none")
    write_classifier(Classifier(config), facts, path)
    return path
