"""Training ControlNets from the command line, on small random models: what is written, measured and refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import tiny
from tests.conftest import MakeBundle

from langevin.checkpoints.loader import load_controlnet
from langevin.cli.main import run as cli
from langevin.errors import DataError
from langevin.images.hints import HINTS
from langevin.images.pixels import open_picture, to_pictures
from langevin.model.conditioning import Conditioning, Control
from langevin.model.diffusion_model import DiffusionModel
from langevin.tasks.hints import in_cells
from langevin.training import metrics
from langevin.training.caching import CacheConfig
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.data.fitting import Fit
from langevin.training.finetuning.config import ControlStage
from langevin.training.finetuning.control import held_out
from langevin.training.finetuning.hints import read_hints
from langevin.training.finetuning.parts import TunedControl
from langevin.training.objectives.control import Hinted
from langevin.training.randomness import generator
from langevin.training.system import System

LOOP = ("steps=6", "batch_size=2", "save_every=2", "log_every=2", "sample_every=100", "warmup=1", "learning_rate=0.01",
        "precision=float32")  # fmt: skip
OTHERS = ("data.size=32", "data.flip=0.5", "controlnet.measured=2", "controlnet.guidance=1")


def train(model: Path, data: Path, out: Path, *more: str) -> int:
    settings = [*(f"controlnet.loop.{s}" for s in LOOP), *OTHERS]
    return cli(
        ["finetune", "controlnet", "--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
        + [part for s in settings for part in ("--set", s)]
        + list(more)
    )


@pytest.fixture(scope="module")
def run(model_file: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("control") / "run"
    assert train(model_file, shapes, folder) == 0
    return folder


def newest(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "controlnet" / "checkpoints" / "00000006" / f"{name}.safetensors")


# -- what is written --------------------------------------------------------------------------------------------------


def test_both_layouts_hold_what_was_trained(run: Path, model_file: Path) -> None:
    ema, base = newest(run, "ema"), load_file(model_file)
    file = load_file(run / "controlnet.safetensors")
    assert file.keys() == {f"control_model.{name}" for name in ema}
    assert all(torch.equal(file[f"control_model.{name}"], value) for name, value in ema.items())
    network = load_controlnet(run / "controlnet-diffusers")
    assert all(torch.equal(value, ema[name]) for name, value in network.state_dict().items())
    copied = [name for name in ema if f"model.diffusion_model.{name}" in base]
    assert len(copied) == sum(name.startswith(("time_embed", "input_blocks", "middle_block.")) for name in ema)
    moved = [name for name in copied if not torch.equal(ema[name], base[f"model.diffusion_model.{name}"])]
    assert len(moved) > 0.9 * len(copied)  # all but what the first step's zeros kept from learning
    assert all(ema[f"zero_convs.{i}.0.weight"].any() for i in range(4))


def test_previews_measure_held_out_pictures(run: Path) -> None:
    (row,) = metrics.read(run / "controlnet" / "measured.jsonl")
    assert row["step"] == 6
    assert all(0 <= row[f"edge_{name}"] <= 1 for name in ("precision", "recall", "f1"))
    assert all(0 < row[f"edge_f1{name}"] <= 1 for name in ("_without", "_reconstructed"))
    assert open_picture(run / "controlnet" / "preview-00000006.png").size == (2 * 34 + 2, 4 * 34 + 2)
    assert (run / "controlnet" / "metrics.png").is_file()


@pytest.mark.parametrize(
    ("unet", "facts"), [(tiny.SD1, {}), (tiny.SD2, {"modelspec.prediction_type": "v"})], ids=["sd1", "sd2"]
)
def test_published_layouts_get_one(unet: Any, facts: dict[str, str], shapes: Path, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model.safetensors", tiny.single_file(unet), facts)
    short = ("controlnet.loop.steps=2", "data.size=16")
    assert train(source, shapes, tmp_path / "run", *(part for s in short for part in ("--set", s))) == 0
    network = load_controlnet(tmp_path / "run" / "controlnet.safetensors")
    folder = load_controlnet(tmp_path / "run" / "controlnet-diffusers")
    assert network.config.context_channels == folder.config.context_channels == unet.context_channels
    assert all(torch.equal(value, folder.state_dict()[name]) for name, value in network.state_dict().items())


# -- how it trains ----------------------------------------------------------------------------------------------------


def test_a_run_in_two_sittings_reaches_the_same_weights(
    run: Path, model_file: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = System.train_stage

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for step in original(*args, **kwargs):
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(System, "train_stage", interrupted)
        assert train(model_file, shapes, tmp_path) == 130
    assert train(model_file, shapes, tmp_path, "--resume") == 0
    for name in ("weights", "ema", "optimizer"):
        whole, cut = newest(run, name), newest(tmp_path, name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    assert (tmp_path / "controlnet" / "measured.jsonl").read_text() == (
        run / "controlnet" / "measured.jsonl"
    ).read_text()


def test_other_hints_are_not_gone_on_with(
    run: Path, model_file: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(model_file, shapes, run, "--hint", "blur", "--resume") == 2
    assert "was begun with controlnet.hint = 'canny', not 'blur'" in " ".join(capsys.readouterr().err.split())


def test_training_learns_to_read_the_hint(run: Path) -> None:
    last = metrics.read(run / "controlnet" / "measured.jsonl")[-1]
    assert last["held_out_loss"] < 0.9 * last["held_out_loss_without"]


def test_before_training_nothing_changes(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("v")
    tuned = TunedControl(bundle)
    assert tuned.unet is bundle.diffusion.network
    assert not any(p.requires_grad for p in tuned.unet.parameters())
    assert all(p.requires_grad for p in tuned.module.parameters())
    x, sigma = torch.randn(2, 4, 8, 8, generator=generator(0, "x")), torch.tensor([0.5, 3.0], dtype=torch.float64)
    context = torch.randn(2, 7, 32, generator=generator(0, "context"))
    features = tuned.control.embed_hint(torch.rand(2, 3, 64, 64, generator=generator(0, "hint")))
    model: DiffusionModel = bundle.diffusion
    controlled = Conditioning(context=context, controls=(Control(tuned.control, features),))
    with torch.no_grad():  # with a backward pass attention is another kernel
        assert torch.equal(model.raw(x, sigma, Conditioning(context=context)), model.raw(x, sigma, controlled))
    model.raw(x, sigma, controlled).square().mean().backward()
    reached = {n.partition(".")[0] for n, p in tuned.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"zero_convs", "middle_block_out"}  # the rest begins to learn with the second step


# -- hints and held-out pictures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(shapes: Path) -> PictureSet:
    return read_data(shapes, DataConfig(size=32, flip=0.5))


def test_hints_from_a_folder_are_those_that_were_made(pictures: PictureSet, tmp_path: Path) -> None:
    made = read_hints("line-art", pictures, Fit.STRETCH, CacheConfig(), tmp_path)
    folder = tmp_path / "hints"
    folder.mkdir()
    for key, picture in zip(pictures.keys, to_pictures(pictures.images(range(len(pictures)))), strict=True):
        HINTS["line-art"](picture).save(folder / f"{key}.png")
    read = read_hints(str(folder), pictures, Fit.STRETCH, CacheConfig(), tmp_path)
    again = read_hints("line-art", pictures, Fit.STRETCH, CacheConfig(), tmp_path)  # from the cache
    for hints in (read, again):
        assert torch.equal(hints.pictures, made.pictures) and hints.fingerprint == made.fingerprint
    samples = [(epoch, i) for epoch in range(3) for i in range(len(pictures))]
    assert torch.equal(made.flips(samples, 5), pictures.flips(samples, 5))  # mirrored with its picture
    assert bool(made.flips(samples, 5).any())
    next(folder.glob("*.png")).unlink()
    with pytest.raises(DataError, match="has no map for the picture"):
        read_hints(str(folder), pictures, Fit.STRETCH, CacheConfig(), tmp_path)


def test_the_hint_is_mirrored_with_its_picture(make_bundle: MakeBundle, pictures: PictureSet, tmp_path: Path) -> None:
    tuned = TunedControl(make_bundle())
    torch.nn.init.normal_(tuned.control.input_hint_block[-1].weight)
    hints = read_hints("canny", pictures, Fit.STRETCH, CacheConfig(), tmp_path)
    hinted = Hinted(pictures, 0, hints, tuned, 4)
    (plain,) = hinted.given([4, 4], torch.tensor([False, True]), []).controls
    pixels = in_cells((hints.images([4]) + 1) / 2, 4)
    with torch.no_grad():
        expected = tuned.control.embed_hint(torch.cat([pixels, pixels.flip(-1)]))
    assert torch.allclose(plain.features, expected, atol=1e-6) and not torch.equal(expected[0], expected[1])


def test_hints_have_eight_pixels_a_cell() -> None:
    hint = torch.rand(1, 3, 16, 16, generator=generator(0, "hint"))
    assert in_cells(hint, 8) is hint
    assert torch.equal(in_cells(hint, 4), hint.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(in_cells(hint, 16), torch.nn.functional.avg_pool2d(hint, 2), atol=1e-6)


def test_which_pictures_are_held_out(pictures: PictureSet) -> None:
    def stage(**options: Any) -> ControlStage:
        return ControlStage(loop={"steps": 1, "batch_size": 1, "learning_rate": 1}, **options)  # type: ignore[arg-type]

    trained, measured = held_out(pictures, stage(measured=3))
    assert len(trained) == 21 and len(measured) == 3
    assert not set(trained.keys) & set(measured.keys) and measured.flip == 0 and trained.flip == 0.5
    trained, measured = held_out(pictures, stage(measured=1, held_out={"split": ("val",)}))
    assert len(trained) == 22 and measured.records[0]["split"] == "val"
    for options, said in (
        ({"measured": 25}, "of one size there are only 24 pictures"),
        ({"measured": 24}, "all 24 pictures of the data are held out"),
        ({"held_out": {"split": ("test",)}}, "only 0 pictures with held_out="),
    ):
        with pytest.raises(DataError, match=said):
            held_out(pictures, stage(**options))


def test_what_gets_no_controlnet_is_refused(
    model_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inpainting = tiny.save(tmp_path / "inpainting.safetensors", tiny.single_file(tiny.INPAINTING))
    for model, more, said in (
        (inpainting, (), "is for inpainting: fine-tuning takes text-to-image models"),
        (model_file, ("--hint", "cany"), "controlnet.hint 'cany' is neither a folder nor one of canny, blur,"),
        (model_file, ("--hint", str(tmp_path)), "has no map for the picture"),
        (model_file, ("--word", "<x>"), "--word has no meaning for finetune controlnet"),
        (model_file, ("--set", "controlnet.measured=24"), "all 24 pictures of the data are held out"),
    ):
        assert train(model, shapes, tmp_path / "out", *more) == 2, said
        err = " ".join(capsys.readouterr().err.split())
        assert said in err and "Traceback" not in err, err
    words = ["finetune", "lora", "--data", str(shapes), "--out", str(tmp_path / "out"), "--hint", "canny"]
    assert cli(words) == 2
    assert "--hint has no meaning for finetune lora" in " ".join(capsys.readouterr().err.split())
