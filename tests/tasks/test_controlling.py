"""Steering by hints: windows, guess mode, batches, the manifest, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.conftest import MakeBundle, randomise

from langevin.checkpoints.controlnets import open_control_file, write_control_folder
from langevin.checkpoints.loader import open_tensors
from langevin.checkpoints.steering import add_steering
from langevin.cli import main as cli
from langevin.diffusion.grids import make_grid
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import CheckpointError, RequestError
from langevin.images.hints import canny
from langevin.images.png import read_png
from langevin.model.bundle import ModelBundle
from langevin.networks.controlnet import ControlNet
from langevin.networks.t2i_adapter import T2IAdapter, T2IAdapterConfig
from langevin.networks.unet import UNet
from langevin.tasks import ControlOptions, ControlRequest, GenerateRequest, Plan, control, run, text_to_image
from langevin.tasks.control_request import split_control
from langevin.tasks.controlling import thresholds
from langevin.tasks.hints import hint_tensor

HINT = Image.linear_gradient("L").resize((32, 32)).convert("RGB")


@pytest.fixture(scope="module")
def networks(tiny_bundle: ModelBundle) -> list[ControlNet | T2IAdapter]:
    unet = tiny_bundle.diffusion.network
    assert isinstance(unet, UNet)
    found = [ControlNet.from_unet(unet), ControlNet.from_unet(unet), T2IAdapter(T2IAdapterConfig(channels=(32, 64)))]
    for i, network in enumerate(found):
        randomise(network, i)
    return found


class Steer(NamedTuple):
    network: ControlNet | T2IAdapter | None
    picture: Image.Image
    options: ControlOptions


def steer(network: Any, picture: Image.Image = HINT, **options: Any) -> Steer:
    return Steer(network, picture, ControlOptions(**options))


def plan(bundle: ModelBundle, *steers: Steer, start: Image.Image | None = None, **options: Any) -> Plan:
    request = ControlRequest(
        **{"prompt": "a red apple", "seed": 7, "steps": 2, **options}, controls=tuple(s.options for s in steers)
    )
    steering = tuple(s.network for s in steers if s.network is not None)
    return control(dataclasses.replace(bundle, steering=steering), [s.picture for s in steers], request, image=start)


def latents(plan: Plan) -> torch.Tensor:
    return run(plan).finish().latents


def test_windows_are_noise_levels() -> None:
    sigmas = make_grid("trailing", NoiseSchedule.scaled_linear(), 10)

    def acting(start: float, end: float, **options: bool) -> list[int]:
        first, last = thresholds(sigmas, ControlOptions(start=start, end=end), **options)
        return [i for i, level in enumerate(sigmas[:-1].tolist()) if last < level <= first]

    assert acting(0, 1) == list(range(10))
    assert acting(0, 0.4) == [0, 1, 2, 3] and acting(0.4, 1) == [4, 5, 6, 7, 8, 9]
    assert acting(0, 0.45) == [0, 1, 2, 3, 4] and acting(0, 0.45, whole_steps=True) == [0, 1, 2, 3]
    assert acting(0.41, 0.49) == []
    assert acting(0, 0.7, whole_steps=True) == list(range(7))


def test_strength_nothing_is_plain_generation(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    request = GenerateRequest(prompt="a red apple", seed=7, steps=2)
    plain = latents(text_to_image(tiny_bundle, request))
    for network in networks:
        assert torch.equal(latents(plan(tiny_bundle, steer(network, strength=0.0))), plain)
        assert not torch.allclose(latents(plan(tiny_bundle, steer(network))), plain, atol=1e-2)


def test_controls_add_up(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    """Twice the same at half the strength is that one, and the order does not matter."""
    one = latents(plan(tiny_bundle, steer(networks[0])))
    two = latents(plan(tiny_bundle, steer(networks[0], strength=0.5), steer(networks[0], strength=0.5)))
    assert (one - two).abs().max() < 1e-4
    a = latents(plan(tiny_bundle, steer(networks[0]), steer(networks[2]), steer(networks[1])))
    b = latents(plan(tiny_bundle, steer(networks[1]), steer(networks[0]), steer(networks[2])))
    assert (a - b).abs().max() < 1e-4


def test_guess_mode_leaves_the_negative_prompt_alone(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    """At guidance 0 only the negative prompt counts."""
    plain = latents(text_to_image(tiny_bundle, GenerateRequest(prompt="a red apple", seed=7, steps=2, guidance=0.0)))
    guessed = latents(plan(tiny_bundle, steer(networks[0]), guidance=0.0, guess=True))
    assert (guessed - plain).abs().max() < 1e-4
    assert (latents(plan(tiny_bundle, steer(networks[0]), guidance=0.0)) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("options", [{}, {"guess": True, "negative": "dog"}])
def test_a_picture_is_the_same_in_any_batch(
    options: dict[str, Any], tiny_bundle: ModelBundle, networks: list[Any]
) -> None:
    steers = [steer(networks[0]), steer(networks[2], start=0.5)]
    together = latents(plan(tiny_bundle, *steers, count=3, start=HINT, **options))
    alone = latents(plan(tiny_bundle, *steers, seed=9, start=HINT, **options))
    assert torch.equal(together[2:], alone)
    fast = run(plan(tiny_bundle, *steers, count=3, mode="fast", start=HINT, **options)).finish()
    assert (fast.latents - together).abs().max() < 1e-3


def test_a_hint_is_embedded_once_whatever_steps_and_pictures(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    counts = {"hint": 0, "control": 0, "adapter": 0}

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            counts[name] += 1

        return hook

    watched = [
        networks[0].input_hint_block.register_forward_hook(count("hint")),
        networks[0].middle_block.register_forward_hook(count("control")),
        networks[2].register_forward_hook(count("adapter")),
    ]
    run(plan(tiny_bundle, steer(networks[0]), steer(networks[2]), steps=3, count=2)).finish()
    for handle in watched:
        handle.remove()
    assert counts == {"hint": 1, "control": 6, "adapter": 1}


def test_half_precision_falls_back_with_its_controls(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(dtype=torch.bfloat16)
    unet = bundle.diffusion.network
    assert isinstance(unet, UNet)
    network = randomise(ControlNet.from_unet(unet), 1).to(torch.bfloat16)
    adapter = randomise(T2IAdapter(T2IAdapterConfig(channels=(32, 64))), 2).to(torch.bfloat16)
    p = plan(bundle, steer(network), steer(adapter), guess=True)
    assert p.denoiser_float32 is not None
    with torch.no_grad():
        wide, half = p.denoiser_float32()(p.x, 3.0).x0, p.denoiser(p.x, 3.0).x0
    assert wide.dtype == torch.float32 and 0 < (wide - half).abs().max() < 0.5 * wide.abs().max()


def test_hints_as_networks_see_them() -> None:
    hint = Image.new("RGB", (10, 6), (255, 0, 51))
    seen = hint_tensor(hint, 10, 6, 8)
    assert seen.shape == (1, 3, 8, 16) and seen[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert hint_tensor(hint, 10, 6, 4, 1).shape == (1, 1, 16, 24)  # 2 x 3 cells
    assert hint_tensor(hint, 32, 16, 16).shape == (1, 3, 8, 16)
    with pytest.raises(RequestError, match="hints of 4 channels"):
        hint_tensor(hint, 10, 6, 8, 4)


def test_hints_are_made_of_pictures(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    made = latents(plan(tiny_bundle, steer(networks[0], kind="canny")))
    assert torch.equal(made, latents(plan(tiny_bundle, steer(networks[0], canny(HINT)))))
    with pytest.raises(RequestError, match=r"'cany' is not known: use hint, canny.*; did you mean 'canny'\?"):
        plan(tiny_bundle, steer(networks[0], kind="cany"))


def test_what_is_said_of_sizes_and_windows(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    p = plan(tiny_bundle, steer(networks[0], HINT.resize((64, 32)), start=0.6, end=0.7))
    assert "control 0: 64 x 32 pixels are stretched to 32 x 32" in p.notices
    assert any("control 0 acts at no step" in notice for notice in p.notices)
    assert not plan(tiny_bundle, steer(networks[0], HINT.resize((64, 64)))).notices


def test_what_cannot_be_steered_is_refused(tiny_bundle: ModelBundle, networks: list[Any]) -> None:
    with pytest.raises(RequestError, match="no control was given: give at least one hint"):
        plan(tiny_bundle)
    with pytest.raises(RequestError, match="the file of model tiny holds no ControlNet"):
        plan(tiny_bundle, steer(None))
    with pytest.raises(RequestError, match="2 controls and 1 networks"):
        control(dataclasses.replace(tiny_bundle, steering=(networks[0],)), [HINT, HINT], ControlRequest(prompt=""))
    with pytest.raises(RequestError, match="1 controls for 2 pictures"):
        control(
            dataclasses.replace(tiny_bundle, steering=tuple(networks[:2])),
            [HINT, HINT],
            ControlRequest(prompt="", controls=(ControlOptions(),)),
        )
    with pytest.raises(RequestError, match="guess mode is of ControlNets"):
        plan(tiny_bundle, steer(networks[2]), guess=True)
    with pytest.raises(RequestError, match=r"strength -1\.0 is out of bounds: give 0 to 10"):
        ControlOptions(strength=-1.0)
    with pytest.raises(RequestError, match=r"from 0\.6 to 0\.5 acts nowhere"):
        ControlOptions(start=0.6, end=0.5)


@pytest.mark.parametrize(
    ("text", "options", "path"),
    [
        ("canny=a.png", {"kind": "canny"}, "a.png"),
        ("hint=a.png:0.8", {"strength": 0.8}, "a.png"),
        ("hint=C:/a:b.png:1:0-0.5", {"end": 0.5}, "C:/a:b.png"),
        ("hint=12:3", {"strength": 3.0}, "12"),
        ("hint=a=b.png:.5:0.25-1", {"strength": 0.5, "start": 0.25}, "a=b.png"),
    ],
)
def test_controls_in_one_text(text: str, options: dict[str, Any], path: str) -> None:
    assert split_control(text) == (ControlOptions(**options), path)


@pytest.mark.parametrize("text", ["", "a.png", "=a.png", "canny=", "hint=a.png:0-0.5"])
def test_malformed_controls(text: str) -> None:
    with pytest.raises(RequestError, match=r"control .* (is not KIND=PICTURE|has no strength)"):
        split_control(text)


@pytest.fixture
def files(networks: list[Any], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    HINT.save("hint.png")
    control = {f"control_model.{n}": t.contiguous() for n, t in networks[0].state_dict().items()}
    save_file(control, "control.safetensors")
    adapter = {f"adapter.{n}": t for n, t in networks[2].state_dict().items()}
    names = {n: n.replace("body.0.", "body.0.resnets.0.").replace("body.1.", "body.0.resnets.1.")
             .replace("body.2.in_conv", "body.1.in_conv").replace("body.2.", "body.1.resnets.0.")
             .replace("body.3.", "body.1.resnets.1.") for n in adapter}  # fmt: skip
    save_file({names[n]: t.contiguous() for n, t in adapter.items()}, "adapter.safetensors")
    return {"-m": str(model_file)}


def command(files: dict[str, str], *arguments: str) -> int:
    return cli.run(["control", "a red apple", "--steps", "2", "-s", "7", "-m", files["-m"], "-q", *arguments])


def test_the_command(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    both = ["-c", "hint=hint.png:0.8", "--controlnet", "control.safetensors"]
    both += ["-c", "canny=hint.png:1:0-0.5", "--controlnet", "adapter.safetensors"]
    assert command(files, *both, "--image", "hint.png", "--strength", "0.5", "-o", "out.png") == 0
    assert capsys.readouterr().out == "out.png\n"
    _, manifest = read_png("out.png")
    assert manifest["task"] == "control"
    assert [(i["role"], i["name"]) for i in manifest["inputs"]] == [
        ("control 0", "hint.png"), ("control 1", "hint.png"), ("image", "hint.png"),
    ]  # fmt: skip
    assert manifest["request"]["controls"] == [
        {"kind": "hint", "strength": 0.8, "start": 0.0, "end": 1.0},
        {"kind": "canny", "strength": 1.0, "start": 0.0, "end": 0.5},
    ]
    added = manifest["model"]["additions"]
    assert [(a["kind"], a["name"]) for a in added] == [
        ("controlnet", "control.safetensors"), ("t2i-adapter", "adapter.safetensors"),
    ]  # fmt: skip
    assert len(added[0]["sha256"]) == 64
    assert cli.run(["reproduce", "out.png", "--verify", "-q", "-m", files["-m"]]) == 0
    Path("control.safetensors").rename("other.safetensors")
    assert cli.run(["reproduce", "out.png", "--verify", "-q", "-m", files["-m"]]) == 2
    assert "the picture's model does not open: control.safetensors: no such file" in capsys.readouterr().err


def test_networks_from_folders_that_are_called_the_same(files: dict[str, str], networks: list[Any]) -> None:
    """Both weight files are diffusion_pytorch_model.safetensors; which is which is told by hash, wherever they are."""
    for name, network in zip("ab", networks, strict=False):
        save_file({n: t.contiguous() for n, t in network.state_dict().items()}, f"{name}.safetensors")
        opened = open_control_file(open_tensors(Path(f"{name}.safetensors")), steered=network.config)
        write_control_folder(opened, name)
        Path(f"{name}.safetensors").unlink()
    both = ["-c", "hint=hint.png", "--controlnet", "a", "-c", "hint=hint.png:0.5", "--controlnet", "b"]
    assert command(files, *both, "-o", "out.png") == 0
    _, manifest = read_png("out.png")
    added = manifest["model"]["additions"]
    assert [(a["folder"], a["name"]) for a in added] == [
        ("a", "diffusion_pytorch_model.safetensors"), ("b", "diffusion_pytorch_model.safetensors"),
    ]  # fmt: skip
    again = ["reproduce", "out.png", "--verify", "-q", "-m", files["-m"]]
    assert cli.run(again) == 0
    Path("a").rename("c")
    Path("b").rename("a")  # the names alone would lead astray
    assert cli.run(again) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing steers: give at least one --control or --ip-image"),
        (["-c", "hint.png"], "'hint.png' is not KIND=PICTURE"),
        (["-c", "hint=hint.png"], "holds no ControlNet"),
        (["-c", "hint=nothing.png", "--controlnet", "control.safetensors"], "nothing.png does not exist"),
        (["-c", "hint=hint.png", "--controlnet", "nothing"], "nothing: no such file or folder"),
        (["-c", "hint=hint.png", *["--controlnet", "control.safetensors"] * 2], "1 controls and 2 files"),
        (["-c", "hint=hint.png", "--controlnet", "hint.png"], "hint.png"),
        (["-c", "hint=hint.png:99", "--controlnet", "control.safetensors"], "strength 99.0 is out of bounds"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(files, *arguments, "-o", "out.png") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not Path("out.png").exists()


def test_networks_for_other_models_are_refused(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    from tests.checkpoints import tiny

    for unet, words in ((tiny.SD1, r"768 channels \(Stable Diffusion 1\.x\)"), (tiny.SD2, r"1024 channels \(Stable")):
        network = tiny.random_network(ControlNet(unet))
        path = tmp_path / "c.safetensors"
        save_file({f"control_model.{n}": t.contiguous() for n, t in network.state_dict().items()}, path)
        with pytest.raises(CheckpointError, match=f"with a context of {words}.*; tiny has a context of 32"):
            add_steering(tiny_bundle, path)
    network = T2IAdapter(T2IAdapterConfig(channels=(32, 32, 64, 64)))
    save_file(dict(network.state_dict()), path)
    with pytest.raises(CheckpointError, match="levels of 32/32/64/64 channels; tiny has 32/64: give one made for it"):
        add_steering(tiny_bundle, path)
