"""Each recipe, made small, through the command line: trained, stopped and resumed, loaded, sampled."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.baselines.conftest import SIZE

from langevin.baselines.diffusion import DiffusionPictures
from langevin.baselines.family import PictureModel
from langevin.baselines.loading import load_baseline
from langevin.baselines.recipes import RECIPES
from langevin.checkpoints.loader import load_bundle
from langevin.cli.main import run as langevin
from langevin.errors import CheckpointError
from langevin.training.data import PictureSet
from langevin.training.system import System

NAMES = list(RECIPES)


def settings(name: str) -> list[str]:
    system = RECIPES[name]()
    loop = {"steps": 4, "batch_size": 6, "warmup": 1, "log_every": 1, "save_every": 2, "sample_every": 4}
    fields = [*system.trial, *(f"{stage}.loop.{k}={v}" for stage in system.loops for k, v in loop.items())]
    fields += [f"data.size={SIZE}"] + (["gan.network.size=8"] if name == "gan-fashion" else [])
    return [part for field in fields for part in ("--set", field)]


def train(name: str, data: Path, out: Path, *more: str) -> int:
    words = ["train", name, "--data", str(data), "--out", str(out), "--device", "cpu", *settings(name), *more]
    return langevin(words)


def opened(name: str, path: Path) -> PictureModel:
    if name == "latent-fashion":
        return DiffusionPictures(load_bundle(path), steps=3)
    return load_baseline(path)


@pytest.fixture(scope="module", params=NAMES)
def trained(
    request: pytest.FixtureRequest, grey_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("runs") / request.param
    assert train(request.param, grey_folder, out) == 0
    return request.param, out


def test_the_file_loads_and_makes_pictures(trained: tuple[str, Path], grey: PictureSet) -> None:
    name, out = trained
    model = opened(name, out / "model.safetensors")
    pictures = model.sample([3, 4])
    assert pictures.shape == (2, 3, SIZE, SIZE) and bool(pictures.isfinite().all())
    assert float(pictures.abs().max()) <= 1 and model.parameters > 100
    figures = model.likelihood(grey.pictures[:3], seed=0)
    assert bool(figures) == (name in ("pixelcnn-fashion", "imagegpt-fashion"))
    assert all(0 < figure.value < 20 and figure.reference == 3 for figure in figures)
    stages = list(RECIPES[name]().loops)
    assert all((out / stage / "preview-00000004.png").is_file() for stage in stages)


def test_a_run_in_two_sittings_writes_the_very_same_file(
    trained: tuple[str, Path], grey_folder: Path, tmp_path: Path
) -> None:
    name, out = trained
    last = list(RECIPES[name]().loops)[-1]
    original = System.train_stage

    def interrupted(self: System, stage: str, *args: object, **kwargs: object) -> object:
        for step in original(self, stage, *args, **kwargs):  # type: ignore[arg-type]
            if stage == last and step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(System, "train_stage", interrupted)
        assert train(name, grey_folder, tmp_path / "cut") == 130
    torch.manual_seed(99)
    assert train(name, grey_folder, tmp_path / "cut", "--resume") == 0
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2)}
    for metadata, message in [
        (None, "its metadata has no valid langevin.baseline"),
        ({"langevin.baseline": "{"}, "its metadata has no valid langevin.baseline"),
        ({"langevin.baseline": json.dumps({"kind": "flow"})}, "is a 'flow': known are gan, pixelcnn, imagegpt"),
        ({"langevin.baseline": json.dumps({"kind": "gan", "depth": 3})}, "its configuration is not valid"),
        ({"langevin.baseline": json.dumps({"kind": "gan", "size": 9})}, "size 9: must be a multiple of 4"),
        ({"langevin.baseline": json.dumps({"kind": "gan", "width": 4})}, "the weights are not those of its conf"),
    ]:
        path = tmp_path / "other.safetensors"
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=message) as error:
            load_baseline(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_built_and_say_what_they_are(name: str) -> None:
    assert RECIPES[name]().data.size == 28
    assert (RECIPES[name].__doc__ or "").strip()


def test_no_name_is_given_twice() -> None:
    from langevin.training.recipes import RECIPES as OTHERS

    assert not RECIPES.keys() & OTHERS.keys()
