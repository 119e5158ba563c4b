"""`explain` against what generating really does: the same plan, the same calls, the same memory."""

from __future__ import annotations

import json
import math
import os
import struct
import weakref
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.original import write
from langevin.cli.main import run as command_line
from langevin.errors import CheckpointError, RequestError
from langevin.model.bundle import ModelBundle
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.unet import UNet, UNetConfig
from langevin.tasks.explain import Explanation, explain
from langevin.tasks.from_text import text_to_image
from langevin.tasks.memory import activation_bytes, weight_bytes
from langevin.tasks.request import GenerateRequest, ModelOptions
from langevin.tasks.runner import run


@pytest.fixture(scope="module")
def model(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "tiny.safetensors"
    write(tiny_bundle, path)
    return path


def explained(model: Path, **values: Any) -> Explanation:
    values.setdefault("prompt", "a red apple")
    return explain(GenerateRequest(**values), ModelOptions(model=str(model)))


# -- the same as generating ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 7, "sampler": "heun", "schedule": "karras"},
        {"steps": 3, "sampler": "dpmpp_sde", "seed": 5},
        {"steps": 3, "sampler": "restart"},
        {"steps": 5, "sampler": "plms", "compat": "diffusers"},
        {"steps": 4, "guidance": 1.0},
        {"steps": 6, "guidance_interval": (0.5, 4.0), "sampler": "dpm2"},
        {"sigmas": (9.0, 3.0, 1.0, 0.0), "sampler": "lms"},
        {"prompt": "a [cat:dog:0.5] and [x|y]", "negative": "[red::2]", "steps": 5},
        {"prompt": "apple " * 100, "negative": "a BREAK b", "width": 24, "height": 40},
        {"count": 5, "mode": "fast", "batch_size": 2, "steps": 2},
        {"count": 3, "steps": 2},
    ],
    ids=lambda v: " ".join(f"{k}={str(x)[:18]}" for k, x in v.items()) or "defaults",
)
def test_calls_and_numbers_are_those_of_the_run(model: Path, values: dict[str, Any]) -> None:
    found = explained(model, **values)

    bundle = load_bundle(model)
    asked: list[tuple[float, int]] = []
    network = bundle.diffusion.network

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        asked.append((float(inputs[1][0]), len(inputs[0])))

    network.register_forward_pre_hook(note)
    plan = text_to_image(bundle, GenerateRequest(**{"prompt": "a red apple", **values}))
    assert bundle.text is not None
    assert bundle.text.calls == found.text_calls
    run(plan).finish()
    assert bundle.text.calls == found.text_calls  # once, whatever the steps

    if values.get("mode") == "fast":  # one call more, which measures the difference of batches
        asked.pop(1)
    per_batch = [(call.timestep, call.images) for call in found.calls]
    assert asked[: len(per_batch)] == per_batch
    assert len(asked) == found.network_calls
    assert found.sigmas == tuple(plan.sigmas.tolist())
    assert found.timesteps == tuple(plan.record["timesteps"])
    assert found.prior_scale == pytest.approx(float(plan.x.std() / plan.noise.initial().std()), rel=1e-5)
    unseeded = {"seed", "seeds", "count"}
    assert found.request.items() >= plan.request.model_dump(mode="json", exclude=unseeded).items()
    for text, tokens in zip(found.prompt, plan.record["tokens"]["prompt"], strict=True):
        ids = [token.id for chunk in text.chunks for token in chunk]
        assert text.from_sigma == tokens["from_sigma"]
        assert ids == [i for i in tokens["ids"] if i not in (bundle.text.tokenizer.bos, bundle.text.tokenizer.eos)]
    assert set(plan.notices) == set(found.notices)


def test_no_weights_are_read(model: Path, tmp_path: Path) -> None:
    """A file that has nothing but holes where its tensors are gives the same explanation."""
    with open(model, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
    hollow = tmp_path / "tiny.safetensors"
    with open(hollow, "wb") as file:
        file.write(struct.pack("<Q", length) + header)
        file.truncate(os.path.getsize(model))
    assert explained(hollow) == explained(model)


def test_tokens_with_their_weights(model: Path) -> None:
    found = explained(model, prompt="a (red:1.5) apple BREAK house")
    (text,) = found.prompt
    by_weight = [
        [(weight, "".join(t.text for t in tokens)) for weight, tokens in groupby(chunk, key=lambda t: t.weight)]
        for chunk in text.chunks
    ]
    assert by_weight == [[(1.0, "a</w>"), (1.5, "red</w>"), (1.0, "apple</w>")], [(1.0, "house</w>")]]
    assert text.room == 75
    assert [chunk for t in found.negative for chunk in t.chunks] == [()]


def test_switches(model: Path) -> None:
    found = explained(model, prompt="a [cat:dog:0.5]", steps=4)
    assert [(t.from_sigma, t.text) for t in found.prompt] == [(None, "a cat"), (found.sigmas[2], "a dog")]


def test_unknown_prediction_is_said(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    from langevin.checkpoints.memory import checkpoint_of
    from langevin.checkpoints.original import write_original

    path = tmp_path / "unsaid.safetensors"
    checkpoint = checkpoint_of(tiny_bundle)
    config = type(checkpoint.config)(**{**vars(checkpoint.config), "prediction": None})
    write_original(type(checkpoint)(**{**vars(checkpoint), "config": config}), path)
    found = explained(path)
    assert found.prediction == "unknown"
    assert "probes" in found.notices[0]
    told = explain(GenerateRequest(prompt="a"), ModelOptions(model=str(path), prediction="v"))
    assert told.prediction == "v"
    assert not any("probes" in notice for notice in told.notices)


# -- memory -------------------------------------------------------------------------------------------------------


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of every tensor that torch's kernels make on the CPU, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def grow(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mine = {id(t.untyped_storage()) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and id(storage) not in mine and storage not in self.known:
                self.known.add(storage)
                self.grow(storage.nbytes())
                weakref.finalize(storage, self.grow, -storage.nbytes())
        return result


UNETS = [
    UNetConfig(model_channels=32, channel_mult=(1, 2), attention_levels=(True, False), context_channels=48),
    UNetConfig(
        model_channels=64,
        channel_mult=(1, 2, 2),
        attention_levels=(True, True, False),
        num_heads=None,
        head_channels=32,
        linear_projection=True,
        upcast_attention=True,
        context_channels=64,
        num_res_blocks=1,
    ),
]


@pytest.mark.parametrize("config", UNETS, ids=["convolutional projection", "linear projection, upcast"])
@pytest.mark.parametrize("size", [(16, 16), (24, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_estimate_of_the_network(config: UNetConfig, size: tuple[int, int], dtype: torch.dtype) -> None:
    """The meta device's answer against tensors that are really there. Not bit for bit: some kernels keep a little
    beside their result."""
    net = UNet(config).eval().to(dtype)

    def inputs(device: str) -> list[Tensor]:
        return [
            torch.zeros(2, 4, *size, dtype=dtype, device=device),
            torch.full((2,), 500.0, device=device),
            torch.zeros(2, 77, config.context_channels or 0, dtype=dtype, device=device),
        ]

    with torch.device("meta"):
        hollow = UNet(config).to(dtype)
    estimate = activation_bytes(lambda z, t, c: hollow(z, t, context=c), *inputs("meta"))
    real = inputs("cpu")
    with torch.no_grad(), LiveTensors() as live:
        net(real[0], real[1], context=real[2])
    measured = live.most + sum(t.numel() * t.element_size() for t in real)
    assert estimate == pytest.approx(measured, rel=0.05)
    assert weight_bytes(hollow) == sum(p.numel() * p.element_size() for p in net.parameters())


def test_estimate_of_decoding() -> None:
    config = AutoencoderConfig(base_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1)
    with torch.device("meta"):
        hollow = AutoencoderKL(config)
    estimate = activation_bytes(hollow.decode, torch.zeros(1, 4, 24, 16, device="meta"))
    net, latents = AutoencoderKL(config), torch.zeros(1, 4, 24, 16)
    with torch.no_grad(), LiveTensors() as live:
        net.decode(latents)
    assert estimate == pytest.approx(live.most + latents.numel() * 4, rel=0.05)


def test_memory_grows_with_the_picture_and_shrinks_with_the_dtype(model: Path) -> None:
    small, large = explained(model), explained(model, width=64, height=64)
    assert small.memory.weights == large.memory.weights
    assert 3 < large.memory.activations["vae"] / small.memory.activations["vae"] < 5
    half = explain(GenerateRequest(prompt="a"), ModelOptions(model=str(model), dtype="bf16"))
    assert {k: 2 * v for k, v in half.memory.weights.items()} == small.memory.weights
    assert small.memory.total == sum(small.memory.weights.values()) + max(small.memory.activations.values())


# -- the command --------------------------------------------------------------------------------------------------


def test_command_prints_everything(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["a (red:1.5) [cat|dog]", "-m", str(model), "--steps", "2", "--sampler", "heun", "--count", "3"]
    assert command_line(["explain", *arguments]) == 0
    text = capsys.readouterr().out
    assert 'prompt: "a (red:1.5) cat"' in text
    assert "from sigma" in text
    assert "x 1.5    r(" in text
    assert "   0     14.614641    999.000" in text
    assert "9 calls: 3 times (3 on 2 pictures)" in text
    assert "MiB (an estimate: weights and the largest stage)" in text


def test_command_prints_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["explain", "a red apple", "-m", str(model), "--json", "--guidance", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = explained(model, guidance=1.0)
    assert found == json.loads(json.dumps(expected.to_json()))
    assert found["network_calls"] == 4
    assert {call["images"] for call in found["calls"]} == {1}
    assert found["memory"]["total"] == expected.memory.total
    assert math.isclose(found["sigmas"][0], 14.614641, rel_tol=1e-6)


def test_command_has_the_options_of_generate() -> None:
    import typer

    from langevin.cli.main import build

    commands = typer.main.get_command(build()).commands  # type: ignore[attr-defined]
    options = {name: {o for p in commands[name].params for o in p.opts} for name in ("explain", "generate")}
    assert options["generate"] - options["explain"] == {"--output", "-o", "--quiet", "-q"}
    assert options["explain"] - options["generate"] == {"--json"}


def test_errors_are_those_of_generate(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="sampler"):
        explained(model, sampler="dpmpp_3m_sde", compat="diffusers")
    with pytest.raises(RequestError, match="320 tokens in 5 chunks; long='error' allows one"):
        explained(model, prompt="apple " * 80, long="error")
    with pytest.raises(CheckpointError):
        explained(model.with_name("missing.safetensors"))
    assert command_line(["explain", "a", "-m", str(model), "--steps", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
