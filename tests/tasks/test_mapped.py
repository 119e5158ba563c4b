"""Pictures from a text and a map: what the network is given, batches, what is refused; depth maps of a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import MakeBundle, randomise

from langevin.checkpoints import original
from langevin.cli import main as cli
from langevin.errors import CheckpointError, DataError, RequestError
from langevin.images.depth import estimate_depth
from langevin.images.png import read_png
from langevin.model.bundle import ModelBundle, Task
from langevin.networks.unet import UNet
from langevin.tasks import DepthRequest, Plan, SemanticRequest, depth_to_image, run, semantic_to_image

DEPTH = Image.linear_gradient("L").resize((32, 32))
PICTURE = Image.radial_gradient("L").resize((32, 32)).convert("RGB")


def widened(bundle: ModelBundle, channels: int, task: Task) -> ModelBundle:
    """The model with further input channels."""
    unet = bundle.diffusion.network
    assert isinstance(unet, UNet)
    wide = UNet(dataclasses.replace(unet.config, in_channels=4 + channels))
    diffusion = dataclasses.replace(bundle.diffusion, network=randomise(wide, 3))
    return dataclasses.replace(bundle, diffusion=diffusion, info=dataclasses.replace(bundle.info, task=task))


@pytest.fixture(scope="module")
def depth_model(make_bundle: MakeBundle) -> ModelBundle:
    return widened(make_bundle(), 1, "depth")


@pytest.fixture(scope="module")
def classes_model(make_bundle: MakeBundle) -> ModelBundle:
    return widened(make_bundle(), 3, "text-to-image")


def from_depth(model: ModelBundle, depth: Image.Image = DEPTH, image: Any = None, **options: Any) -> Plan:
    request = DepthRequest(**{"prompt": "a red apple", "seed": 7, "steps": 2, **options})
    return depth_to_image(model, depth, request, image=image)


def from_classes(model: ModelBundle, classes: Image.Image, **options: Any) -> Plan:
    return semantic_to_image(model, classes, SemanticRequest(prompt="a red apple", seed=7, steps=2, **options))


def seen(plan: Plan, model: ModelBundle) -> torch.Tensor:
    """What stands in the further channels of the network's input."""
    given: list[torch.Tensor] = []
    handle = model.diffusion.network.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0][:, 4:]))
    with torch.no_grad():
        plan.denoiser(plan.x[:1], 3.0)
    handle.remove()
    assert torch.equal(given[0][0], given[0][1])  # with and without the text
    return given[0][:1]


def latents(plan: Plan) -> torch.Tensor:
    return run(plan).finish().latents


def test_a_depth_map_in_any_unit(depth_model: ModelBundle) -> None:
    channel = seen(from_depth(depth_model), depth_model)
    assert channel.shape == (1, 1, 8, 8) and float(channel.min()) == -1 and float(channel.max()) == 1
    assert bool((channel.diff(dim=2) > 0).all())
    values = np.asarray(DEPTH).astype(np.float32)
    for same in (
        Image.fromarray(values * 0.013 + 4),
        Image.fromarray((values * 256).astype(np.uint16)),
        DEPTH.convert("RGB"),
    ):
        assert torch.allclose(seen(from_depth(depth_model, same), depth_model), channel, atol=1e-4)
    flat = seen(from_depth(depth_model, Image.new("L", (32, 32), 9)), depth_model)
    assert torch.equal(flat, -torch.ones(1, 1, 8, 8))


def test_maps_of_classes(classes_model: ModelBundle) -> None:
    numbers = np.zeros((32, 32), np.uint8)
    numbers[:, 18:] = 2
    channels = seen(from_classes(classes_model, Image.fromarray(numbers)), classes_model)
    assert channels[0, :, 0, 4].tolist() == [0.5, 0.0, 0.5] and torch.equal(channels.sum(1), torch.ones(1, 8, 8))
    colours = np.array([(0, 0, 0), (0, 255, 0), (255, 0, 0)], np.uint8)[numbers]
    palette = ("black", "#00ff00", "red")
    same = seen(from_classes(classes_model, Image.fromarray(colours), palette=palette), classes_model)
    assert torch.equal(same, channels)


def test_a_picture_is_the_same_in_any_batch(depth_model: ModelBundle, classes_model: ModelBundle) -> None:
    together = latents(from_depth(depth_model, count=3, image=PICTURE, strength=0.5))
    alone = latents(from_depth(depth_model, seed=9, image=PICTURE, strength=0.5))
    assert torch.equal(together[2:], alone)
    numbers = Image.new("L", (8, 8), 1)
    assert torch.equal(
        latents(from_classes(classes_model, numbers, count=2))[:1], latents(from_classes(classes_model, numbers))
    )


def test_sizes(depth_model: ModelBundle) -> None:
    p = from_depth(depth_model, DEPTH.resize((48, 40)), PICTURE.resize((48, 40)), strength=0.5)
    assert (p.request.width, p.request.height) == (48, 40) and len(p.notices) == 1  # where it starts
    p = from_depth(depth_model, DEPTH.resize((30, 32)), width=30)
    assert seen(p, depth_model).shape == (1, 1, 8, 8) and run(p).finish().images[0].size == (30, 32)
    assert any(
        "the depth: 32 x 32 pixels are stretched to 64 x 32" in n for n in from_depth(depth_model, width=64).notices
    )


def test_what_does_not_fit_is_refused(
    tiny_bundle: ModelBundle, depth_model: ModelBundle, classes_model: ModelBundle
) -> None:
    with pytest.raises(RequestError, match="model tiny is for text-to-image: give a depth model"):
        from_depth(tiny_bundle)
    for model in (tiny_bundle, depth_model):
        with pytest.raises(RequestError, match="give a model of maps of classes"):
            from_classes(model, DEPTH)
    with pytest.raises(RequestError, match="prompt is missing"):
        from_depth(depth_model, prompt=None)
    with pytest.raises(RequestError, match="label 3: model tiny takes a text"):
        from_depth(depth_model, label=3)
    with pytest.raises(DataError, match="the depth: a picture of mode RGB: a map of values is grey"):
        from_depth(depth_model, Image.new("RGB", (8, 8), "red"))
    with pytest.raises(DataError, match="the map: it has the class 255; there are 3"):
        from_classes(classes_model, Image.new("L", (8, 8), 255))
    with pytest.raises(RequestError, match="palette has 1 colours: model tiny has 3 classes"):
        from_classes(classes_model, DEPTH, palette=("red",))
    with pytest.raises(RequestError, match="palette: unknown color specifier"):
        from_classes(classes_model, DEPTH, palette=("red", "green", "nocolour"))


def test_the_commands(
    depth_model: ModelBundle, classes_model: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    original.write(depth_model, "depth.safetensors")
    original.write(classes_model, "classes.safetensors")
    DEPTH.save("depth.png")
    Image.new("L", (32, 32), 1).save("classes.png")
    usual = ["a red apple", "--steps", "2", "-s", "7", "-q"]
    assert (
        cli.run(["depth2img", "depth.png", *usual, "-m", "depth.safetensors", "--image", "depth.png", "-o", "a.png"])
        == 0
    )
    assert cli.run(["semantic2img", "classes.png", *usual, "-m", "classes.safetensors", "-o", "b.png"]) == 0
    assert capsys.readouterr().out == "a.png\nb.png\n"
    manifest = read_png("a.png")[1]
    assert manifest["task"] == "depth-to-image" and manifest["request"]["strength"] == 0.8
    assert [given["role"] for given in manifest["inputs"]] == ["depth", "image"]
    assert read_png("b.png")[1]["task"] == "semantic-to-image"
    assert cli.run(["reproduce", "a.png", "--verify", "-q", "-m", "depth.safetensors"]) == 0
    assert cli.run(["reproduce", "b.png", "--verify", "-q", "-m", "classes.safetensors"]) == 0
    assert capsys.readouterr().out == "a.png: the same, pixel for pixel\nb.png: the same, pixel for pixel\n"
    assert cli.run(["depth2img", "nothing.png", *usual, "-m", "depth.safetensors", "-o", "c.png"]) == 2
    assert cli.run(["semantic2img", "depth.png", *usual, "-m", "classes.safetensors", "-o", "c.png"]) == 2
    assert cli.run(["depth", "depth.png", "-o", "c.png", "--depth-model", "nowhere"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "error: nothing.png does not exist",
        "error: depth.png: it has the class 251; there are 3, from 0",
        "error: nowhere holds no depth model: give a folder of the transformers library's",
    ]
    assert not Path("c.png").exists()


def test_depth_by_a_local_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16,
        use_auxiliary_head=False,
    )  # fmt: skip
    network = transformers.DPTForDepthEstimation(config).eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5]}'
    )
    found = estimate_depth(PICTURE.resize((40, 24)), tmp_path)
    assert found.size == (40, 24) and found.mode == "I;16"
    values = np.asarray(found)
    assert values.min() == 0 and values.max() == 65535
    weights = load_file(tmp_path / "model.safetensors")
    save_file({n: t for n, t in weights.items() if n != "head.head.0.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 weights of the depth model are missing \(head\.head\.0\.bias\)"):
        estimate_depth(PICTURE, tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": -1}}')
    with pytest.raises(CheckpointError, match="is not a width and a height"):
        estimate_depth(PICTURE, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="cannot be read as a depth model"):
        estimate_depth(PICTURE, tmp_path)
