"""Fine-tuning from the command line to pictures, on small random models and on a small data set."""

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
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.cli.main import run as cli
from langevin.images.png import read_png
from langevin.model.text import TextEncoder
from langevin.training.system import System

LOOP = ("steps=6", "batch_size=2", "save_every=2", "log_every=2", "warmup=1", "learning_rate=0.01",
        "precision=float32")  # fmt: skip
FIELD = {"full": "full", "lora": "lora", "dreambooth": "dreambooth", "textual-inversion": "inversion"}


def tune(method: str, model: Path, data: Path, out: Path, *more: str, size: int = 32) -> int:
    field = FIELD[method]
    settings = [f"{field}.loop.{s}" for s in LOOP] + [f'{field}.preview_prompts=["a red circle"]', f"data.size={size}"]
    return cli(
        ["finetune", method, "--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
        + [part for s in settings for part in ("--set", s)]
        + list(more)
    )


WAYS: dict[str, tuple[str, ...]] = {
    "full": ("--set", "full.text=true"),
    "lora": ("--set", 'lora.targets=["transformer", "convolution", "text"]', "--set", "lora.dropout=0.1"),
    "dreambooth": (
        "--prompt", "a red sks circle", "--class-prompt", "a circle",
        "--set", "dreambooth.class_pictures=3", "--set", "dreambooth.class_steps=2",
    ),
    "textual-inversion": ("--word", "<flat>", "--start", "red apple", "--set", "inversion.vectors=3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(model_file: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each way."""
    folder = tmp_path_factory.mktemp("runs")
    for method, more in WAYS.items():
        assert tune(method, model_file, shapes, folder / method, *more) == 0
    return {method: folder / method for method in WAYS}


def newest(run: Path, stage: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "checkpoints" / "00000006" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def base(model_file: Path) -> dict[str, torch.Tensor]:
    return load_file(model_file)


def same_picture(a: langevin.Model, b: langevin.Model, prompt: str = "a red circle") -> bool:
    first, second = (m.generate(prompt, steps=2, seed=1).latents for m in (a, b))
    return torch.equal(first, second)


# -- what is written --------------------------------------------------------------------------------------------------


def test_full_tuning_writes_the_model_as_it_was_laid_out(runs: dict[str, Path], base: dict[str, torch.Tensor]) -> None:
    path = runs["full"] / "model.safetensors"
    tuned = load_file(path)
    assert {k: (v.dtype, v.shape) for k, v in tuned.items()} == {k: (v.dtype, v.shape) for k, v in base.items()}
    changed = {name.split(".")[0] for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {"model", "cond_stage_model"}  # U-Net and text tower, not the autoencoder
    ema = newest(runs["full"], "full", "ema")
    for name in ema:
        part, _, rest = name.partition(".")
        prefix = "model.diffusion_model." if part == "unet" else "cond_stage_model.transformer."
        assert torch.equal(tuned[prefix + rest], ema[name]), name
    assert langevin.load(path).generate("a red circle", steps=2, seed=0).images[0].size == (32, 32)


def test_only_the_adapters_are_trained_averaged_and_saved(runs: dict[str, Path], model_file: Path) -> None:
    run = runs["lora"]
    for name in ("weights", "ema"):
        saved = newest(run, "lora", name)
        assert saved and all(n.startswith(("unet.layers.", "text.layers.")) for n in saved)
        assert all(n.endswith(("down.weight", "up.weight")) for n in saved)
    indices = {n.partition(".")[0] for n in newest(run, "lora", "optimizer")}
    assert len(indices) == len(newest(run, "lora", "weights"))
    kohya, diffusers = load_file(run / "lora.safetensors"), load_file(run / "lora-diffusers.safetensors")
    assert 3 * len(diffusers) == 2 * len(kohya)  # alphas stand in the metadata there
    assert any(n.startswith("lora_te_text_model_encoder_layers_0_self_attn_q_proj") for n in kohya)
    assert kohya["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape == (8, 32, 3, 3)
    model = langevin.load(model_file)
    one, other = (model.with_lora(run / name) for name in ("lora.safetensors", "lora-diffusers.safetensors"))
    assert same_picture(one, other) and not same_picture(one, model)
    assert same_picture(model.with_lora(run / "lora.safetensors", 0), model)


def test_training_with_adapters_is_running_with_them_merged(runs: dict[str, Path], model_file: Path) -> None:
    """The preview's way, by hooks beside the frozen weights, against the loaded file's, in the weights."""
    from langevin.training.finetuning.parts import TunedLora
    from langevin.training.finetuning.systems import LoraTuning

    config = json.loads((runs["lora"] / "run.json").read_text())["config"]
    tuned = LoraTuning(**config).tuned(load_bundle(model_file))
    assert isinstance(tuned, TunedLora)
    tuned.module.load_state_dict(newest(runs["lora"], "lora", "ema"))
    tuned.module.eval()
    merged = langevin.load(model_file).with_lora(runs["lora"] / "lora.safetensors").bundle
    assert isinstance(merged.text, TextEncoder)
    tokens = merged.text.tokens(["a red circle"])
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        contexts = [t.network(tokens).states.expand(2, -1, -1) for t in (tuned.text, merged.text)]
        outputs = [
            network(z, torch.tensor([500.0, 20.0]), context=context)
            for network, context in zip((tuned.unet, merged.diffusion.network), contexts, strict=True)
        ]
    assert float((contexts[0] - contexts[1]).abs().max()) < 1e-4
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-4


def test_a_new_word_changes_no_other(runs: dict[str, Path], model_file: Path, base: dict[str, torch.Tensor]) -> None:
    folder = runs["textual-inversion"] / "embedding"
    a1111, diffusers = load_file(folder / "flat.safetensors"), load_file(folder / "learned_embeds.safetensors")
    assert list(a1111) == ["emb_params"] and list(diffusers) == ["<flat>"]
    assert a1111["emb_params"].shape == (3, 32) and torch.equal(a1111["emb_params"], diffusers["<flat>"])
    assert torch.equal(a1111["emb_params"], newest(runs["textual-inversion"], "inversion", "ema")["weight"])
    model = langevin.load(model_file)
    changed = model.with_embedding(folder / "learned_embeds.safetensors")
    before, after = model.bundle.text, changed.bundle.text
    assert isinstance(before, TextEncoder) and isinstance(after, TextEncoder)
    name = "text_model.embeddings.token_embedding.weight"
    rows, more = before.network.get_parameter(name), after.network.get_parameter(name)
    assert torch.equal(more[: len(rows)], rows) and torch.equal(more[len(rows) :], a1111["emb_params"])
    assert torch.equal(rows, base["cond_stage_model.transformer." + name])
    ids = before.tokenizer.encode("red apple")
    start = torch.stack([rows[ids[i % len(ids)]] for i in range(3)])
    assert not torch.isclose(a1111["emb_params"], start).any(1).any()  # each vector has learned
    assert same_picture(changed, model)
    assert not same_picture(changed, changed, "a red circle, <flat>") or True
    prompt = after.tokenizer.encode("a <FLAT> circle")
    assert prompt == [
        *before.tokenizer.encode("a"),
        *range(len(rows), len(rows) + 3),
        *before.tokenizer.encode("circle"),
    ]


def test_class_pictures_are_the_models_own_and_are_made_once(
    runs: dict[str, Path], model_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs["dreambooth"] / "class-pictures"
    model = langevin.load(model_file)
    for i in range(3):
        picture, manifest = read_png(folder / f"{i:05d}.png")
        assert manifest["request"]["seed"] == i and manifest["request"]["prompt"] == "a circle"
        again = model.generate("a circle", seed=i, steps=2, width=32, height=32).images[0]
        assert again.tobytes() == picture.tobytes()
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "00001.png").unlink()
    assert tune("dreambooth", model_file, shapes, runs["dreambooth"], *WAYS["dreambooth"], "--resume") == 0
    after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"00001.png"}
    capsys.readouterr()
    (tmp_path / "class-pictures").mkdir()
    (folder / "00000.png").rename(tmp_path / "class-pictures" / "00000.png")
    more = [part if part != "a circle" else "a square" for part in WAYS["dreambooth"]]
    assert tune("dreambooth", model_file, shapes, tmp_path, *more) == 2
    assert "was made with another prompt" in capsys.readouterr().err.replace("\n", " ")
    (tmp_path / "class-pictures" / "00000.png").rename(folder / "00000.png")


# -- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual-inversion"])
def test_a_run_in_two_sittings_reaches_the_same_weights(
    method: str, runs: dict[str, Path], model_file: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = System.train_stage

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for step in original(*args, **kwargs):
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(System, "train_stage", interrupted)
        assert tune(method, model_file, shapes, tmp_path, *WAYS[method]) == 130
    assert (tmp_path / FIELD[method] / "checkpoints" / "00000003").is_dir()
    moved = tmp_path / "moved.safetensors"  # the model's place may change, its weights may not
    moved.write_bytes(model_file.read_bytes())
    assert tune(method, moved, shapes, tmp_path, *WAYS[method], "--resume") == 0
    for name in ("weights", "ema", "optimizer"):
        whole, cut = (newest(run, FIELD[method], name) for run in (runs[method], tmp_path))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name


def test_another_model_is_not_gone_on_with(
    runs: dict[str, Path], shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs["full"] / "model.safetensors"
    assert tune("lora", other, shapes, runs["lora"], *WAYS["lora"], "--resume") == 2
    assert "was made with model =" in capsys.readouterr().err.replace("\n", " ")


def test_training_learns(model_file: Path, shapes: Path, tmp_path: Path) -> None:
    """One picture again and again: the loss falls far below where it began."""
    assert tune("lora", model_file, shapes, tmp_path, *(part for s in (
        'data.include={"key": ["flat__red-circle"]}', "lora.loop.steps=30", "lora.loop.batch_size=8",
        "lora.loop.log_every=5", 'lora.targets=["transformer", "convolution"]', "lora.loop.save_every=30",
    ) for part in ("--set", s))) == 0  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 * losses[0]


# -- checkpoints of the published kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unet", "facts", "ema"),
    [(tiny.SD1, {}, True), (tiny.SD2, {"modelspec.prediction_type": "v"}, False)],
    ids=["sd1", "sd2"],
)
def test_published_layouts_are_tuned(unet: Any, facts: dict[str, str], ema: bool, shapes: Path, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model.safetensors", tiny.single_file(unet, ema=ema), {"note": "kept", **facts})
    short = ("--set", "full.loop.steps=2", "--set", "full.loop.save_every=2", "--set", "full.guidance=3")
    assert tune("full", source, shapes, tmp_path / "full", *short) == 0
    before, after = SafetensorsFile(source), SafetensorsFile(tmp_path / "full" / "model.safetensors")
    old = {n: i for n, i in before.tensors.items() if not n.startswith("model_ema.")}
    assert {n: i.shape for n, i in after.tensors.items()} == {n: i.shape for n, i in old.items()}
    trained = {n for n in old if n.startswith("model.diffusion_model.")}
    for name in old.keys() - trained:
        assert torch.equal(before.read(name), after.read(name)), name
    # The moving average, where training began from it, was stored in float32.
    assert {after.tensors[n].dtype for n in trained} == {"F32" if ema else "F16"}
    assert any(not torch.equal(after.read(n), before.read(n).to(after.read(n).dtype)) for n in trained)
    assert after.metadata["note"] == "kept"
    bundle = load_bundle(after.path)
    assert bundle.info.default_guidance == 3
    assert bundle.info.prediction == ("v" if facts else "epsilon")
    state = json.loads((tmp_path / "full" / "full" / "checkpoints" / "00000002" / "state.json").read_text())
    assert state["facts"]["weighting"] == ("snr_plus_one" if facts else "snr")
    assert tune("lora", source, shapes, tmp_path / "lora", "--set", "lora.loop.steps=2") == 0
    assert (
        load_bundle(source).info.family
        == langevin.load(source).with_lora(tmp_path / "lora/lora.safetensors").info.family
    )


def test_what_cannot_be_tuned_is_refused(
    model_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inpainting = tiny.save(tmp_path / "inpainting.safetensors", tiny.single_file(tiny.INPAINTING))
    for method, model, more, said in (
        ("lora", inpainting, (), "is for inpainting: fine-tuning takes text-to-image models"),
        ("lora", model_file, ("--set", "data.size=30"), "data.size 30 is not a multiple of 4"),
        ("lora", model_file, ("--set", "lora.targets=[]"), "lora.targets"),
        ("lora", model_file, ("--word", "<x>"), "--word has no meaning for finetune lora"),
        ("lora", model_file, ("--prompt", "{subject}"), "{subject} is not known; there is {caption}"),
        ("lora", model_file, ("--set", "model.nothing=1"), "there is no field 'nothing'"),
        ("dreambooth", model_file, ("--prompt", "a sks"), "finetune dreambooth needs --class-prompt"),
        ("textual-inversion", model_file, ("--word", "<x>"), "finetune textual-inversion needs --start"),
        ("textual-inversion", model_file, ("--word", "A", "--start", "red"), "is a token already"),
        ("textual-inversion", model_file, ("--word", "a b", "--start", "a"), "without white space"),
        ("textual-inversion", model_file, ("--word", "<x>", "--start", " "), "hold no token"),
        ("textual-inversion", model_file, ("--word", "<x>", "--start", "a", "--prompt", "x"), "{word} is not in it"),
        ("lora", tmp_path / "nowhere", (), "no such file or folder"),
    ):  # fmt: skip
        assert tune(method, model, shapes, tmp_path / "out", *more) == 2, said
        err = " ".join(capsys.readouterr().err.split())
        assert said in err and "Traceback" not in err, err
    assert cli(["finetune", "lorra", "--data", "x", "--out", "y"]) == 2
