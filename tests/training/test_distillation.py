"""`langevin finetune distill` from the command line: what is written, what it asks of its model, what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import tiny

import langevin
from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.lora_defaults import DEFAULTS_KEY
from langevin.checkpoints.merging import merge_loras
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.cli.main import run as cli
from langevin.errors import CheckpointError
from langevin.images.pixels import open_picture
from langevin.tasks.from_text import text_to_image
from langevin.tasks.request import GenerateRequest
from langevin.training import metrics
from langevin.training.system import System

LOOP = ("steps=4", "batch_size=2", "save_every=2", "log_every=2", "sample_every=4", "warmup=1", "learning_rate=0.01",
        "precision=float32")  # fmt: skip
OTHERS = ("data.size=16", 'distill.preview_prompts=["a red circle"]', "distill.steps=3", "distill.skip=250")
SMALL = ("--set", "distill.lora.rank=4")


def distil(model: Path, data: Path, out: Path, *more: str) -> int:
    settings = [*(f"distill.loop.{s}" for s in LOOP), *OTHERS]
    return cli(
        ["finetune", "distill", "--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
        + [part for s in settings for part in ("--set", s)]
        + list(more)
    )


@pytest.fixture(scope="module")
def run(model_file: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("distill") / "run"
    assert distil(model_file, shapes, folder, *SMALL) == 0
    return folder


def newest(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "distill" / "checkpoints" / "00000004" / f"{name}.safetensors")


def asked(info: Any) -> tuple[Any, ...]:
    return info.default_sampler, info.default_steps, info.default_guidance


def test_both_layouts_state_how_they_are_sampled(run: Path, model_file: Path) -> None:
    model = langevin.load(model_file)
    kohya, diffusers = (model.with_lora(run / f"lora{name}.safetensors") for name in ("", "-diffusers"))
    assert asked(kohya.info) == asked(diffusers.info) == ("lcm", 3, 1.0)
    assert asked(model.with_lora(run / "lora.safetensors", -0.5).info) == asked(model.info) == (None, 4, 5.0)
    one, other = (m.generate("a red circle", seed=1) for m in (kohya, diffusers))
    assert torch.equal(one.latents, other.latents)
    request = one.plan.request
    assert (request.sampler, request.steps, request.guidance) == ("lcm", 3, 1.0)
    again = text_to_image(kohya, GenerateRequest(prompt="a", sampler="ddim", guidance=2)).request
    assert (again.sampler, again.steps, again.guidance) == ("ddim", 3, 2.0)
    ema = newest(run, "ema")
    kept = load_file(run / "lora-diffusers.safetensors")
    assert sorted(v.double().sum().item() for v in kept.values()) == sorted(
        v.double().sum().item() for v in ema.values()
    )


def test_a_named_file_brings_its_defaults_from_a_prompt(
    run: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "fast.safetensors").write_bytes((run / "lora.safetensors").read_bytes())
    monkeypatch.setenv("LANGEVIN_MODELS", str(tmp_path))
    request = langevin.load(model_file).generate("a red circle <lora:fast:1>", seed=1).plan.request
    assert (request.sampler, request.steps, request.guidance) == ("lcm", 3, 1.0)


def test_a_model_with_it_baked_in_keeps_them(run: Path, model_file: Path, tmp_path: Path) -> None:
    for strength, wanted in ((1.0, ("lcm", 3, 1.0)), (-1.0, (None, 4, 5.0))):
        merge_loras(model_file, [(run / "lora.safetensors", strength)], tmp_path / "baked.safetensors", overwrite=True)
        assert asked(load_bundle(tmp_path / "baked.safetensors").info) == wanted


def test_previews_measure_the_single_step(run: Path) -> None:
    (row,) = metrics.read(run / "distill" / "measured.jsonl")
    assert row["step"] == 4 and row["one_step_error"] > 0 and row["one_step_error_of_teacher"] > 0
    assert open_picture(run / "distill" / "preview-00000004.png").size == (16 + 4, 2 * 18 + 2)


def test_all_weights_of_a_published_layout(shapes: Path, tmp_path: Path) -> None:
    """Of a model that predicts v: the others here predict epsilon."""
    source = tiny.save(tmp_path / "model.safetensors", tiny.single_file(tiny.SD2), {"modelspec.prediction_type": "v"})
    assert distil(source, shapes, tmp_path / "run", "--all-weights", "--set", "distill.loop.steps=1") == 0
    bundle = load_bundle(tmp_path / "run" / "model.safetensors")
    assert asked(bundle.info) == ("lcm", 3, 1.0) and bundle.info.prediction == "v"
    assert cli(["convert", str(tmp_path / "run/model.safetensors"), str(tmp_path / "folder"), "--to", "diffusers"]) == 0
    assert asked(load_bundle(tmp_path / "folder").info) == ("lcm", 3, 1.0)


def test_a_run_in_two_sittings_reaches_the_same_weights(
    run: Path, model_file: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = System.train_stage

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for step in original(*args, **kwargs):
            if step.step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(System, "train_stage", interrupted)
        assert distil(model_file, shapes, tmp_path, *SMALL) == 130
    assert distil(model_file, shapes, tmp_path, *SMALL, "--resume") == 0
    for name in ("weights", "ema", "optimizer"):
        whole, cut = newest(run, name), newest(tmp_path, name)
        assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole), name


def test_what_cannot_be_is_refused(
    run: Path, model_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, more, said in (
        ("new", ("--set", "distill.skip=1000"), "distill.skip 1000: the schedule of tiny has 1000 timesteps"),
        ("new", ("--word", "<x>"), "--word has no meaning for finetune distill"),
        (run, (*SMALL, "--resume", "--set", "distill.guidance=2"), "was begun with distill.guidance = "),
    ):
        assert distil(model_file, shapes, tmp_path / out, *more) == 2, said
        err = " ".join(capsys.readouterr().err.split())
        assert said in err and "Traceback" not in err, err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "where fields are expected"),
        ('{"sampler":"best","steps":4,"guidance":1.0}', "sampler 'best' is none of"),
        ('{"sampler":"lcm","steps":4,"guidance":1.0,"width":64}', "unknown field 'width'"),
    ],
)
def test_damaged_defaults_are_refused(run: Path, model_file: Path, tmp_path: Path, text: str, said: str) -> None:
    from safetensors.torch import save_file

    save_file(load_file(run / "lora.safetensors"), tmp_path / "bad.safetensors", {DEFAULTS_KEY: text})
    with pytest.raises(CheckpointError, match=said):
        langevin.load(model_file).with_lora(tmp_path / "bad.safetensors")


def test_a_model_file_with_an_unknown_sampler_is_refused(model_file: Path, tmp_path: Path) -> None:
    metadata = dict(SafetensorsFile(model_file).metadata)
    config = json.loads(metadata["langevin.config"])
    config["defaults"]["sampler"] = "best"
    from safetensors.torch import save_file

    save_file(load_file(model_file), tmp_path / "bad.safetensors", {**metadata, "langevin.config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="sampler 'best' is none of"):
        load_bundle(tmp_path / "bad.safetensors")
