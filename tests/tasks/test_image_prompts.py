"""Pictures as prompts: their files, batches, the manifest, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.conftest import MakeBundle, randomise

from langevin.checkpoints.describe import describe
from langevin.checkpoints.image_encoders import load_image_encoder
from langevin.checkpoints.ip_adapters import open_ip_adapter
from langevin.checkpoints.loader import open_tensors
from langevin.checkpoints.steering import add_ip_adapter
from langevin.cli import main as cli
from langevin.errors import CheckpointError, RequestError
from langevin.images.png import read_png
from langevin.model.bundle import ModelBundle
from langevin.networks.clip import ClipImage, ClipImageConfig
from langevin.networks.ip_adapter import IPAdapter, IPAdapterConfig
from langevin.tasks import ControlRequest, GenerateRequest, control, run, text_to_image
from langevin.tasks.control_request import split_strength

PICTURE = Image.linear_gradient("L").resize((40, 32)).convert("RGB")
TOWER = ClipImageConfig(
    image_size=16, patch_size=8, width=32, layers=2, heads=2, mlp_width=64, activation="gelu", projection=24
)
LINEAR = IPAdapterConfig(image_channels=24, context_channels=32, layers=(32, 32, 32, 64))
PLUS = dataclasses.replace(LINEAR, kind="plus", image_channels=32, width=32, heads=1, depth=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors publish them: adapters with the image encoder in a folder beside."""
    folder = tmp_path_factory.mktemp("ip")
    (folder / "image_encoder").mkdir()
    tower = randomise(ClipImage(TOWER), 1).state_dict()
    table = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file({**tower, **table}, folder / "image_encoder" / "model.safetensors")
    config = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "hidden_act": "gelu", "projection_dim": 24,
    }  # fmt: skip
    (folder / "image_encoder" / "config.json").write_text(json.dumps(config))
    for name, shape in (("linear", LINEAR), ("plus", PLUS)):
        state = randomise(IPAdapter(shape), 2).state_dict()
        save_file(dict(state), folder / f"{name}.safetensors")
    levels: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in randomise(IPAdapter(LINEAR), 2).state_dict().items():
        level, _, rest = key.partition(".")
        levels[level][rest] = value
    torch.save(levels, folder / "linear.bin")
    return folder


def latents(bundle: ModelBundle, *strengths: float, **options: Any) -> torch.Tensor:
    request = ControlRequest(
        **{"prompt": "a red apple", "seed": 7, "steps": 2, **options}, image_strengths=tuple(strengths)
    )
    return run(control(bundle, [], request, prompts=[PICTURE] * len(strengths))).finish().latents


def test_strength_nothing_is_plain_generation(tiny_bundle: ModelBundle, folder: Path) -> None:
    plain = run(text_to_image(tiny_bundle, GenerateRequest(prompt="a red apple", seed=7, steps=2))).finish().latents
    for name in ("linear", "plus"):
        prompted = add_ip_adapter(tiny_bundle, folder / f"{name}.safetensors")
        assert torch.equal(latents(prompted, 0.0), plain)
        assert (latents(prompted, 1.0) - plain).abs().max() > 1e-2
    assert not tiny_bundle.image_prompters


def test_pictures_add_up(tiny_bundle: ModelBundle, folder: Path) -> None:
    """The same twice at half the strength is that once; its image encoder is loaded once."""
    one = add_ip_adapter(tiny_bundle, folder / "linear.safetensors")
    two = add_ip_adapter(one, folder / "linear.safetensors")
    once = latents(one, 0.8)
    assert (once - latents(two, 0.4, 0.4)).abs().max() < 1e-5 * once.abs().max()
    assert two.image_prompters[0].encoder is two.image_prompters[1].encoder


def test_a_picture_is_the_same_in_any_batch(tiny_bundle: ModelBundle, folder: Path) -> None:
    bundle = add_ip_adapter(tiny_bundle, folder / "plus.safetensors")
    together = latents(bundle, 0.7, count=3, negative="dog")
    assert torch.equal(together[2:], latents(bundle, 0.7, seed=9, negative="dog"))


def test_half_precision_falls_back_with_its_pictures(make_bundle: MakeBundle, folder: Path) -> None:
    bundle = add_ip_adapter(make_bundle(dtype=torch.bfloat16), folder / "linear.safetensors")
    plan = control(bundle, [], ControlRequest(prompt="", seed=1, steps=2), prompts=[PICTURE])
    assert plan.denoiser_float32 is not None
    with torch.no_grad():
        wide, half = plan.denoiser_float32()(plan.x, 3.0).x0, plan.denoiser(plan.x, 3.0).x0
    assert wide.dtype == torch.float32 and 0 < (wide - half).abs().max() < 0.5 * wide.abs().max()


def test_a_pickled_file_is_the_same_adapter(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="a pickle, a format that can carry programs"):
        open_tensors(folder / "linear.bin")
    safe, pickled = (
        open_ip_adapter(open_tensors(folder / f"linear.{ending}", allow_pickle=True))
        for ending in ("safetensors", "bin")
    )
    assert safe.config == pickled.config == LINEAR
    assert all(torch.equal(safe.part.read(name), pickled.part.read(name)) for name in safe.part.places)
    assert describe(folder / "linear.safetensors")["what"] == "an IP-Adapter"


def test_the_image_encoder_in_other_places(folder: Path, tmp_path: Path) -> None:
    """As a whole CLIP, and as a file without a configuration, where its width is that of a published one."""
    small = load_image_encoder(folder / "image_encoder", torch.float32, "cpu").tower
    config = json.loads((folder / "image_encoder" / "config.json").read_text())
    whole = {"model_type": "clip", "projection_dim": 24, "vision_config": config, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    save_file({**small.state_dict(), "text_model.x": torch.ones(1)}, tmp_path / "model.safetensors")
    found = load_image_encoder(tmp_path, torch.float32, "cpu").tower
    assert found.config == TOWER and torch.equal(found.visual_projection.weight, small.visual_projection.weight)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"heads and activation of an image tower of 32 .*; put its config\.json"):
        load_image_encoder(tmp_path / "model.safetensors", torch.float32, "cpu")
    known = dataclasses.replace(TOWER, width=1280, layers=1, heads=16, mlp_width=8, projection=None)
    save_file(dict(ClipImage(known).state_dict()), tmp_path / "known.safetensors")
    assert load_image_encoder(tmp_path / "known.safetensors", torch.float32, "cpu").tower.config == known
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensors of CLIP's image tower \(vision_model"):
        load_image_encoder(tmp_path / "a.safetensors", torch.float32, "cpu")


def test_adapters_for_other_models_are_refused(tiny_bundle: ModelBundle, folder: Path, tmp_path: Path) -> None:
    def saved(config: IPAdapterConfig, **more: torch.Tensor) -> Path:
        path = tmp_path / "x.safetensors"
        save_file({**IPAdapter(config).state_dict(), **more}, path)
        return path

    encoder = folder / "image_encoder"
    with pytest.raises(CheckpointError, match=r"of 768 channels \(Stable Diffusion 1\.x\); tiny has a context of 32"):
        add_ip_adapter(tiny_bundle, saved(dataclasses.replace(LINEAR, context_channels=768)), encoder)
    with pytest.raises(CheckpointError, match=r"attention of 32/64 channels; tiny has 32/32/32/64: give one made"):
        add_ip_adapter(tiny_bundle, saved(dataclasses.replace(LINEAR, layers=(32, 64))), encoder)
    with pytest.raises(CheckpointError, match="as 48 channels, the image encoder image_encoder gives 24 channels"):
        add_ip_adapter(tiny_bundle, saved(dataclasses.replace(LINEAR, image_channels=48)), encoder)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no folder image_encoder beside it: give its image"):
        add_ip_adapter(tiny_bundle, saved(LINEAR))
    with pytest.raises(CheckpointError, match="for Stable Diffusion XL"):
        add_ip_adapter(tiny_bundle, saved(dataclasses.replace(LINEAR, context_channels=2048)), encoder)
    face = {
        "image_proj.perceiver_resampler.proj_in.weight": torch.ones(1),
        "ip_adapter.0.to_q_lora.down.weight": torch.ones(1),
    }
    with pytest.raises(CheckpointError, match="for face recognition's vectors; expected one for pictures"):
        add_ip_adapter(tiny_bundle, saved(LINEAR, **face), encoder)
    with pytest.raises(CheckpointError, match=r"IP-Adapter: 1 tensors too many \(image_proj\.more\)"):
        add_ip_adapter(tiny_bundle, saved(LINEAR, **{"image_proj.more": torch.ones(1)}), encoder)
    with pytest.raises(CheckpointError, match="expected an IP-Adapter"):
        add_ip_adapter(tiny_bundle, encoder / "model.safetensors", encoder)


def test_what_does_not_fit_together_is_refused(tiny_bundle: ModelBundle, folder: Path) -> None:
    bundle = add_ip_adapter(tiny_bundle, folder / "linear.safetensors")
    with pytest.raises(RequestError, match="no control was given: give at least one hint, or a picture as a prompt"):
        control(bundle, [], ControlRequest(prompt=""))
    with pytest.raises(RequestError, match="2 pictures as prompts and 1 IP-Adapters"):
        control(bundle, [], ControlRequest(prompt=""), prompts=[PICTURE, PICTURE])
    with pytest.raises(RequestError, match="2 strengths for 1 pictures"):
        control(bundle, [], ControlRequest(prompt="", image_strengths=(1.0, 1.0)), prompts=[PICTURE])
    with pytest.raises(RequestError, match=r"image_strengths -1\.0 is out of bounds: give 0 to 10"):
        ControlRequest(prompt="", image_strengths=(-1.0,))
    assert split_strength("a.png:0.5") == ("a.png", 0.5) and split_strength("C:/a.png") == ("C:/a.png", 1.0)


def test_the_command(
    folder: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    PICTURE.save("picture.png")
    model = ["-m", str(model_file)]
    common = ["control", "a red apple", "--steps", "1", "-s", "7", "-q", "-o", "out.png", *model]
    file = str(folder / "linear.safetensors")
    assert cli.run([*common, "--ip-image", "picture.png:0.8", "--ip-adapter", file]) == 0
    _, manifest = read_png("out.png")
    assert manifest["request"]["image_strengths"] == [0.8]
    assert [(i["role"], i["name"]) for i in manifest["inputs"]] == [("image prompt 0", "picture.png")]
    assert [(a["kind"], a["name"], a.get("folder")) for a in manifest["model"]["additions"]] == [
        ("image-encoder", "model.safetensors", "image_encoder"), ("ip-adapter", "linear.safetensors", None),
    ]  # fmt: skip
    again = ["reproduce", "out.png", "--verify", "-q", *model]
    assert cli.run([*again, "--additions", str(folder)]) == 0
    assert cli.run(again) == 2
    assert "linear.safetensors: no such file" in capsys.readouterr().err
    for arguments, message in (
        ([], "nothing steers: give at least one --control or --ip-image"),
        (["--ip-image", "picture.png"], "1 pictures as prompts and 0 IP-Adapters"),
        (["-c", "hint=picture.png", "--image-encoder", "x"], "an image encoder without an IP-Adapter"),
        (["--ip-image", "picture.png", "--ip-adapter", file, "--image-encoder", "x"], "x: no such file"),
    ):
        assert cli.run([*common, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
