"""Merged models, baked and extracted LoRAs, against their formulae and against diffusers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny
from tests.conftest import MakeBundle
from torch import Tensor

from langevin.checkpoints import original
from langevin.checkpoints.additions import add_lora
from langevin.checkpoints.extracting import extract_lora
from langevin.checkpoints.folder_writer import write_folder
from langevin.checkpoints.loader import load_bundle, open_checkpoint
from langevin.checkpoints.lora import LoraLayout, layer_names, write_lora
from langevin.checkpoints.merging import MERGE_KEY, How, merge_loras, merge_models
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.cli import main as cli
from langevin.errors import CheckpointError, LangevinError
from langevin.model.bundle import ModelBundle
from langevin.networks.lora import LoraWeights


@pytest.fixture(scope="module")
def models(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one architecture, float16, the third as a diffusers folder."""
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"{name}.safetensors" for name in "abc"]
    for seed, path in enumerate(paths):
        original.write(make_bundle(seed=seed), path, dtype="F16")
    write_folder(open_checkpoint(paths[2]), folder / "c")
    return [*paths[:2], folder / "c", paths[2]]


def adapters(bundle: ModelBundle, seed: int = 3) -> dict[str, dict[str, LoraWeights]]:
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, LoraWeights]] = {}
    for part, names in layer_names(bundle).items():
        for ours in names:
            shape = bundle.networks()[part].get_parameter(f"{ours}.weight").shape
            down = torch.randn((2, *shape[1:]), generator=generator) / shape[1:].numel() ** 0.5
            up = torch.randn((shape[0], 2, *[1] * (len(shape) - 2)), generator=generator) * 0.3
            parts.setdefault(part, {})[ours] = LoraWeights(down, up, 1.0)
    return parts


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_a_weighted_sum(ratio: float, models: list[Path], tmp_path: Path) -> None:
    a, b, *_ = models
    done = merge_models([a, b], tmp_path / "m.safetensors", ratio=ratio)
    one, two, found = (load_file(path) for path in (a, b, done.target))
    assert list(found) == list(one)
    for name, value in found.items():
        assert value.dtype == one[name].dtype
        expected = ((1 - ratio) * one[name].float() + ratio * two[name].float()).half()
        assert torch.equal(value, expected), name
    assert sum(done.tensors.values()) == len(found)
    facts = json.loads(SafetensorsFile(done.target).metadata[MERGE_KEY])
    assert facts["how"] == "weighted-sum" and facts["ratio"] == ratio
    assert facts["models"][0] == [{"name": "a.safetensors", "sha256": hashlib.sha256(a.read_bytes()).hexdigest()}]
    assert str(a.parent) not in SafetensorsFile(done.target).metadata[MERGE_KEY]
    load_bundle(done.target)


def test_a_difference_is_added_and_only_to_the_parts_asked_for(models: list[Path], tmp_path: Path) -> None:
    a, b, c, c_file = models
    done = merge_models([a, b, c], tmp_path / "m.safetensors", how=How.ADD_DIFFERENCE, ratio=1.5, parts=["unet"])
    one, two, three, found = (load_file(path) for path in (a, b, c_file, done.target))
    for name, value in found.items():
        if name.startswith("model.diffusion_model."):
            assert torch.equal(value, (one[name].float() + 1.5 * (two[name].float() - three[name].float())).half())
        else:
            assert torch.equal(value, one[name]), name
    assert list(done.tensors) == ["unet"]


def test_a_difference_goes_into_an_inpainting_model(tmp_path: Path) -> None:
    """As inpainting models of fine-tuned ones are made: its further input channels stay."""
    inpainting = tiny.single_file(tiny.INPAINTING)
    tuned = {n: v + 0.25 if n.startswith("model.") else v for n, v in tiny.single_file(tiny.SD1).items()}
    paths = [
        tiny.save(tmp_path / f"{name}.safetensors", tensors)
        for name, tensors in (("i", inpainting), ("t", tuned), ("b", tiny.single_file(tiny.SD1)))
    ]
    done = merge_models(paths, tmp_path / "m.safetensors", how=How.ADD_DIFFERENCE, ratio=1.0)
    found, name = load_file(done.target), "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(found[name][:, 4:], inpainting[name][:, 4:])
    assert torch.allclose(found[name][:, :4].float(), inpainting[name][:, :4].float() + 0.25, atol=1e-3)
    assert "5 further input channels" in done.notices[-1]
    assert load_bundle(done.target).info.task == "inpainting"


@pytest.mark.parametrize("kind", ["of 2.x", "other widths", "v", "ema"])
def test_other_models_are_refused_and_averages_are_left(
    kind: str, models: list[Path], make_bundle: MakeBundle, sd1_file: Path, sd2_file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "m.safetensors"
    if kind == "ema":
        path = tiny.save(tmp_path / "ema.safetensors", tiny.single_file(ema=True))
        merge_models([path, sd1_file], target, ratio=0.0)
        found, source = load_file(target), load_file(path)
        assert not any(name.startswith("model_ema") for name in found)
        name = "model.diffusion_model.out.2.weight"
        assert torch.equal(found[name], source["model_ema.diffusion_modelout2weight"])
        return
    first = models[0] if kind == "v" else sd1_file
    other = sd2_file if kind == "of 2.x" else models[0]
    if kind == "v":
        other = tmp_path / "v.safetensors"
        original.write(make_bundle("v"), other, dtype="F16")
    said = {
        "of 2.x": "are of different architectures: U-Net: time_embed.0.weight is [128, 32] in the first, [256, 64] in",
        "other widths": "attn2.to_k.weight is [32, 768] in the first, [32, 32] in the second",
        "v": "do not predict the same: epsilon and v",
    }[kind]
    with pytest.raises(CheckpointError) as error:
        merge_models([first, other], target)
    assert said in str(error.value) and "\n" not in str(error.value) and not target.exists()


def test_wrong_requests_are_refused(models: list[Path], tmp_path: Path) -> None:
    a, b, *_ = models
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"x")
    for call, said in (
        (lambda: merge_models([a, b, a], tmp_path / "m.safetensors"), "weighted-sum takes 2 models, 3 were given"),
        (lambda: merge_models([a, b], tmp_path / "m.safetensors", how=How.ADD_DIFFERENCE), "takes 3 models"),
        (lambda: merge_models([a, b], tmp_path / "m.safetensors", ratio=1.2), "ratio 1.2 is out of bounds"),
        (lambda: merge_models([a, b], tmp_path / "m.safetensors", ratio=float("nan")), "ratio nan is out of bounds"),
        (lambda: merge_models([a, b], tmp_path / "m.ckpt"), "end its name in .safetensors"),
        (lambda: merge_models([a, b], there), "exists already"),
        (lambda: merge_loras(a, [("x", float("nan"))], tmp_path / "m.safetensors"), "not a finite number"),
        (lambda: merge_loras(a, [("nowhere", 1.0)], tmp_path / "m.safetensors"), "nowhere: no such file"),
        (lambda: extract_lora(a, b, tmp_path / "m.safetensors", rank=0), "rank 0 is out of bounds"),
        (lambda: extract_lora(a, a, tmp_path / "m.safetensors"), "no layer of unet or text differs"),
    ):
        with pytest.raises(LangevinError) as error:
            call()
        assert said in str(error.value)
    assert there.read_bytes() == b"x" and sorted(p.name for p in tmp_path.iterdir()) == ["there.safetensors"]


def test_baking_is_loading_with_it(models: list[Path], tmp_path: Path) -> None:
    """Bit for bit, in the precision of the file; what does not change is the file's."""
    a = models[0]
    bundle = load_bundle(a, dtype="float16")
    parts = adapters(bundle)
    del parts["text"]
    lora = write_lora(tmp_path / "l.safetensors", parts, bundle, LoraLayout.KOHYA)
    done = merge_loras(a, [(lora, 0.8)], tmp_path / "m.safetensors")
    baked, loaded = load_bundle(done.target, dtype="float16"), add_lora(bundle, lora, 0.8)
    for part, network in loaded.networks().items():
        for name, value in network.state_dict().items():
            assert torch.equal(value, baked.networks()[part].state_dict()[name]), name
    assert done.tensors == {"unet": len(parts["unet"])}
    facts = json.loads(SafetensorsFile(done.target).metadata[MERGE_KEY])
    assert facts["loras"][0]["name"] == "l.safetensors" and facts["loras"][0]["strength"] == 0.8


@torch.no_grad()
def test_diffusers_fuses_the_same(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    path = tiny.save(tmp_path / "m.safetensors", tiny.single_file(tiny.SD1, dtype=torch.float32))
    write_folder(open_checkpoint(path), tmp_path / "folder")
    bundle = load_bundle(path)
    lora = write_lora(tmp_path / "l.safetensors", adapters(bundle), bundle, LoraLayout.DIFFUSERS)
    baked = load_bundle(merge_loras(path, [(lora, 0.7)], tmp_path / "baked.safetensors").target)
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None, local_files_only=True)
    pipe.load_lora_weights(tmp_path, weight_name=lora.name)
    pipe.fuse_lora(lora_scale=0.7)
    assert baked.text is not None
    tokens = baked.text.tokens(["a red apple"])
    states = baked.text.network(tokens, baked.text.layer).states
    theirs = pipe.text_encoder(tokens).last_hidden_state
    assert float((states - theirs).abs().max()) <= 1e-4
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = baked.diffusion.network(z, torch.tensor([500.0]), context=theirs)
    assert float((ours - pipe.unet(z, 500.0, encoder_hidden_states=theirs).sample).abs().max()) <= 1e-4


def test_an_extracted_lora_gives_back_what_was_baked(models: list[Path], tmp_path: Path) -> None:
    """A model that differs by matrices of rank 2 is got back at rank 2; biases are named as lying elsewhere."""
    base = tmp_path / "base.safetensors"
    original.write(load_bundle(models[0]), base)  # float32
    bundle = load_bundle(base)
    lora = write_lora(tmp_path / "l.safetensors", adapters(bundle), bundle, LoraLayout.KOHYA)
    tuned = merge_loras(base, [(lora, 1.0)], tmp_path / "tuned.safetensors").target
    done = extract_lora(tuned, base, tmp_path / "out.safetensors", rank=2, dtype="F32")
    assert {part: report.elsewhere for part, report in done.parts.items()} == {"unet": (), "text": ()}
    assert all(report.error < 1e-5 and report.unchanged == 0 for report in done.parts.values())
    again = add_lora(bundle, done.target)
    for part, network in load_bundle(tuned).networks().items():
        for name, value in network.state_dict().items():
            assert torch.allclose(again.networks()[part].state_dict()[name], value, atol=1e-5), name
    tensors = load_file(done.target)
    assert all(float(v) == 2 for n, v in tensors.items() if n.endswith(".alpha"))


def test_the_reported_error_is_that_of_the_file(models: list[Path], tmp_path: Path) -> None:
    """Of the singular values that are left out (Eckart and Young), for two unrelated models; and of biases it is said
    that they are not in it."""
    a, b, *_ = models
    done = extract_lora(a, b, tmp_path / "out.safetensors", rank=4, parts=["unet"])
    one, two = (load_bundle(path).diffusion.network.state_dict() for path in (a, b))
    missing = whole = 0.0
    for name in layer_names(load_bundle(a))["unet"]:
        values = torch.linalg.svdvals((one[f"{name}.weight"].double() - two[f"{name}.weight"].double()).flatten(1))
        missing, whole = missing + float((values[4:] ** 2).sum()), whole + float((values**2).sum())
    assert done.parts["unet"].error == pytest.approx((missing / whole) ** 0.5, rel=1e-4)
    assert "out.2.bias" in done.parts["unet"].elsewhere and 0.1 < done.parts["unet"].error < 1
    tensors = load_file(done.target)
    assert {v.dtype for v in tensors.values()} == {torch.float16}
    assert max(len(v) for n, v in tensors.items() if n.endswith("lora_down.weight")) == 4


def test_a_result_that_overflows_is_refused(models: list[Path], tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = load_file(models[0])
    name = "model.diffusion_model.out.2.weight"
    metadata = SafetensorsFile(models[0]).metadata
    save_file(tensors | {name: torch.full_like(tensors[name], 6e4)}, tmp_path / "a.safetensors", dict(metadata))
    save_file(tensors | {name: torch.full_like(tensors[name], -6e4)}, tmp_path / "c.safetensors", dict(metadata))
    paths = [tmp_path / "a.safetensors", tmp_path / "a.safetensors", tmp_path / "c.safetensors"]
    with pytest.raises(CheckpointError, match=r"out\.2\.weight is no longer finite in F16"):
        merge_models(paths, tmp_path / "m.safetensors", how=How.ADD_DIFFERENCE, ratio=1.0)
    assert not (tmp_path / "m.safetensors").exists()


def test_the_commands(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(path) for path in models[:2])
    out, lora = str(tmp_path / "m.safetensors"), str(tmp_path / "l.safetensors")
    assert cli.run(["merge", a, b, "--ratio", "0.2", "--parts", "unet", "-o", out]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: tensors merged: U-Net ")
    assert cli.run(["extract-lora", out, a, "--rank", "2", "-o", lora]) == 0
    said = capsys.readouterr().out
    assert "U-Net: " in said and "relative error 0." in said and "text encoder: 0 layers" in said
    assert cli.run(["merge-lora", a, f"{lora}:0.5", "-o", out, "--force"]) == 0
    assert "tensors changed: U-Net " in capsys.readouterr().out
    for words, message in (
        (["merge", a, b, "-o", out], "exists already; choose another name or pass --force"),
        (["merge", a, b, "--how", "mean", "-o", out], "how 'mean' is not known: use weighted-sum or add-difference"),
        (["merge", a, b, "--parts", "unet,clip", "-o", out], "part 'clip' is not known: use unet, vae, text"),
        (["merge-lora", a, b, "-o", out, "--force"], "expected a LoRA"),
    ):
        assert cli.run(words) == 2
        assert message in capsys.readouterr().err
