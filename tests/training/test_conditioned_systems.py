"""Systems conditioned on pictures or labels, upscalers, cascades: trained for two steps, written, loaded, sampled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import langevin
from langevin.checkpoints.config import UPSCALER
from langevin.cli.main import run as command
from langevin.errors import DataError, RequestError
from langevin.model.conditioning import Conditioning
from langevin.model.guided import guided_model
from langevin.networks.unet import UNet
from langevin.tasks import GenerateRequest, UpscaleRequest, cascade, run, text_to_image, upscale
from langevin.training.config import override
from langevin.training.data import PictureSet, read_data
from langevin.training.objectives.autoencoder import AutoencoderObjective
from langevin.training.objectives.clip import ClipObjective
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.randomness import sample_generators
from langevin.training.recipes import RECIPES
from langevin.training.system import System


def made(recipe: str, shapes: Path, run_folder: Path, *settings: str) -> tuple[Any, PictureSet]:
    """A recipe on its smallest scale, two steps a stage, trained and written."""
    small = RECIPES[recipe]().smallest()
    steps = [f"{stage}.loop.steps=2" for stage in small.loops]
    config: System = override(small, [*steps, *settings])
    data = read_data(shapes, config.data)
    with pytest.MonkeyPatch.context() as patch:  # the tests of the recipes draw previews
        for objective in (AutoencoderObjective, ClipObjective, DiffusionObjective):
            patch.setattr(objective, "preview", lambda self, module, path: None)
        for stage in config.loops:
            for _ in config.train_stage(stage, data, run_folder, device="cpu", resume=False):
                pass
    assert config.finish(data, run_folder) == run_folder / "model.safetensors"
    return config, data


@pytest.fixture(scope="module")
def inpainting(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PictureSet, Path]:
    folder = tmp_path_factory.mktemp("inpainting")
    return *made("shapes-inpainting", shapes, folder), folder


@pytest.fixture(scope="module")
def upscaler(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PictureSet, Path]:
    folder = tmp_path_factory.mktemp("upscaler")
    return *made("shapes-upscaler", shapes, folder), folder


@pytest.fixture(scope="module")
def cascaded(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PictureSet, Path]:
    folder = tmp_path_factory.mktemp("cascade")
    return *made("shapes-cascade", shapes, folder), folder


def test_an_inpainting_model_is_recognised_and_runs(inpainting: tuple[Any, PictureSet, Path]) -> None:
    config, data, folder = inpainting
    model = langevin.load(folder / "model.safetensors")
    assert model.info.task == "inpainting"
    bundle = model.bundle
    assert bundle.diffusion.network.config.in_channels == 9 and bundle.autoencoder is not None
    with pytest.raises(RequestError, match="is for inpainting: give a text-to-image model"):
        model.generate("a red circle")
    unknown = UNet(dataclasses.replace(bundle.diffusion.network.config, in_channels=10))
    strange = dataclasses.replace(
        bundle,
        diffusion=dataclasses.replace(bundle.diffusion, network=unknown),
        info=dataclasses.replace(bundle.info, task="text-to-image"),
    )
    with pytest.raises(RequestError, match="has 6 input channels for what no text gives"):
        text_to_image(strange, GenerateRequest(prompt="a red circle"))
    beside = config.beside(data, bundle.autoencoder).examples(1).cond
    assert bundle.text is not None
    cond, uncond = (Conditioning(bundle.text.encode([t]).context, concat=beside.concat) for t in ("a red circle", ""))
    x = 14.6 * torch.randn(1, 4, 16, 16)
    estimate = guided_model(bundle.diffusion, cond, uncond, 2.0)(x, 14.6)
    assert estimate.x0.shape == (1, 4, 16, 16) and estimate.x0.isfinite().all()


def test_the_condition_reaches_the_network_and_belongs_to_the_run(
    inpainting: tuple[Any, PictureSet, Path], tmp_path: Path
) -> None:
    config, data, folder = inpainting
    objective = config.objective("diffusion", data, folder, "cpu")
    assert isinstance(objective, DiffusionObjective)
    assert objective.facts["beside"] == {"kind": "inpainting", "whole_share": 0.25}
    samples = [(0, 1), (0, 2)]
    given = objective.conditioning(samples, [False, True], sample_generators(0, "x", 0, samples))
    assert given.concat is not None and given.concat.shape == (2, 5, 16, 16)
    assert objective.beside is not None
    expected = objective.beside.of(samples, sample_generators(0, "x", 0, samples)).concat
    assert expected is not None and torch.equal(given.concat, expected)
    # The weights of the further channels learn: the last layer begins at zero, so from the second step on.
    before = load_file(folder / "diffusion" / "checkpoints" / "00000002" / "weights.safetensors")
    torch.manual_seed(0)
    network = objective.module
    network.load_state_dict(before)
    loss, _ = objective.loss(samples, 3)
    loss.backward()
    gradient = network.input_blocks[0][0].weight.grad  # type: ignore[union-attr,index]
    assert (gradient[:, 4:].abs().sum((0, 2, 3)) > 0).all()
    assert config.depends("diffusion") >= {"condition", "autoencoder", "clip", "captions"}


def test_a_stopped_conditioned_run_goes_on_to_the_same_weights(
    inpainting: tuple[Any, PictureSet, Path], tmp_path: Path
) -> None:
    config, data, folder = inpainting
    for stage in ("autoencoder", "clip"):
        (tmp_path / stage).symlink_to(folder / stage)
    steps = config.train_stage("diffusion", data, tmp_path, device="cpu", resume=False)
    next(steps)
    steps.close()
    for _ in config.train_stage("diffusion", data, tmp_path, device="cpu", resume=True):
        pass
    for name in ("weights", "ema", "optimizer"):
        a, b = (load_file(f / f"diffusion/checkpoints/00000002/{name}.safetensors") for f in (folder, tmp_path))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_upscaler_has_the_published_layout_and_upscales(
    upscaler: tuple[Any, PictureSet, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, data, folder = upscaler
    path = folder / "model.safetensors"
    assert command(["info", str(path)]) == 0
    assert "upscaling" in capsys.readouterr().out
    model = langevin.load(path)
    assert model.info.task == "upscaling" and model.info.prediction.value == "v"
    config = model.bundle.diffusion.network.config
    assert config.in_channels == 7 and config.num_classes == 1000
    assert torch.equal(model.bundle.diffusion.schedule.sigmas, UPSCALER.make().sigmas)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        assert {n for n in names if n.startswith("low_scale_model.")} == {
            f"low_scale_model.{n}"
            for n in (
                "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_recip_alphas_cumprod",
                "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
            )
        }  # fmt: skip
        assert "model.diffusion_model.label_emb.weight" in names
        assert file.get_tensor("low_scale_model.betas").dtype is torch.float32
        # Ho et al. 2020, equation 7, by hand at one step.
        betas = torch.linspace(1e-4**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
        abar = torch.cumprod(1 - betas, 0)
        coefficient = betas[500] * abar[499].sqrt() / (1 - abar[500])
        assert float(file.get_tensor("posterior_mean_coef1")[500]) == pytest.approx(float(coefficient), rel=1e-5)
        assert float(file.get_tensor("alphas_cumprod")[999]) == pytest.approx(0.00073341, rel=1e-4)
    small = data.images([0])[0]
    from langevin.images.pixels import to_pictures

    picture = to_pictures(torch.nn.functional.avg_pool2d(small[None], 4))[0]
    request = UpscaleRequest(prompt="a red circle", steps=2, seed=5)
    plan = upscale(model, picture, request)
    assert plan.request.width == plan.request.height == 32 and plan.x.shape == (1, 4, 8, 8)
    result = run(plan).finish()
    assert result.images[0].size == (32, 32)
    assert run(upscale(model, picture, request)).finish().images[0].tobytes() == result.images[0].tobytes()
    other = run(upscale(model, picture, request.changed(noise_level=300))).finish().images[0]
    assert other.tobytes() != result.images[0].tobytes()
    wide = upscale(model, picture.resize((12, 8)), request)
    assert (wide.request.width, wide.request.height) == (48, 32)


def test_what_cannot_be_upscaled_is_refused(upscaler: tuple[Any, PictureSet, Path]) -> None:
    from PIL import Image

    _, _, folder = upscaler
    model = langevin.load(folder / "model.safetensors")
    picture = Image.new("RGB", (8, 8))
    for request, message in (
        ({"noise_level": 1000}, "noise_level 1000 is out of bounds: this model's noise levels are 0 to 999"),
        ({"count": 2}, "2 pictures were asked for: one is upscaled at a time"),
        ({"width": 40}, "size 40 x None: of this picture the model makes 32 x 32"),
    ):
        with pytest.raises(RequestError, match=message):
            upscale(model, picture, UpscaleRequest(**request))
    with pytest.raises(RequestError, match="is for text-to-image: give an upscaler"):
        upscale(langevin.load(), picture, UpscaleRequest(prompt="x"))


def test_a_cascade_draws_small_and_then_large(
    cascaded: tuple[Any, PictureSet, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder = cascaded
    for name, words in (("model", "text-to-image"), ("upscaler", "upscaling")):
        assert command(["info", str(folder / f"{name}.safetensors")]) == 0
        assert words in capsys.readouterr().out
    base, large = (langevin.load(folder / f"{name}.safetensors") for name in ("model", "upscaler"))
    assert base.info.task == "text-to-image" and large.info.task == "upscaling"
    assert base.bundle.autoencoder is None and large.bundle.diffusion.network.config.in_channels == 6
    assert base.generate("a red circle", steps=2, seed=0).images[0].size == (16, 16)
    request = UpscaleRequest(prompt="a red circle", steps=2, seeds=(3, 4), noise_level=100)
    both = cascade(base, large, request)
    assert [p.size for p in both.small] == [(16, 16)] * 2 and [p.size for p in both.images] == [(32, 32)] * 2
    assert both.seeds == (3, 4)
    # Each picture is its own seed's, whatever is drawn beside it.
    alone = cascade(base, large, request.changed(seeds=(4,)))
    assert alone.images[0].tobytes() == both.images[1].tobytes()
    assert (folder / "clip.safetensors").is_file()


def test_a_cascade_stage_needs_the_towers(cascaded: tuple[Any, PictureSet, Path], tmp_path: Path) -> None:
    config, data, _ = cascaded
    with pytest.raises(RequestError, match="clip is not finished: train --stage clip first"):
        config.objective("base", data, tmp_path, "cpu")


def test_a_latent_model_of_classes(shapes: Path, tmp_path: Path) -> None:
    config, data = made("latent-fashion-class", shapes, tmp_path, "diffusion.network.num_classes=4")
    objective = config.objective("diffusion", data, tmp_path, "cpu")
    samples = [(0, i) for i in range(6)]
    given = objective.conditioning(samples, [False] * 5 + [True], sample_generators(0, "x", 0, samples))
    assert given.labels.tolist() == [data.records[i]["label"] for i in range(5)] + [3]
    assert given.context is None and given.concat is None
    model = langevin.load(tmp_path / "model.safetensors")
    assert model.info.task == "class-to-image" and len(model.bundle.classes) == 3
    a, b = (model.generate(label=label, steps=2, seed=1, guidance=3.0).images[0] for label in (0, 2))
    assert a.size == (32, 32) and a.tobytes() != b.tobytes()
    with pytest.raises(DataError, match="has the label 2; the network has the classes 0 to 1"):
        override(config, ["diffusion.network.num_classes=3"]).objective("diffusion", data, tmp_path, "cpu")


def test_depth_makes_five_channels(shapes: Path, tmp_path: Path) -> None:
    made("shapes-depth", shapes, tmp_path)
    model = langevin.load(tmp_path / "model.safetensors")
    assert model.info.task == "depth" and model.bundle.diffusion.network.config.in_channels == 5


def test_an_autoencoder_on_its_own_clip_is_trained_after_it(shapes: Path, tmp_path: Path) -> None:
    adversarial = '{"network": {"base_channels": 8, "layers": 1}, "start": 1, "weight": 0.1}'
    config, data = made(
        "emoji", shapes, tmp_path, "autoencoder.perceptual={}", f"autoencoder.adversarial={adversarial}"
    )
    assert list(config.loops) == ["clip", "autoencoder", "diffusion"]
    assert config.depends("autoencoder") >= {"clip", "captions"}
    objective = config.objective("autoencoder", data, tmp_path, "cpu")
    figures = objective.loss([(0, 0), (0, 1)], 1)[1]
    assert float(figures["perceptual"]) > 0 and float(figures["adaptive_weight"]) > 0
    assert objective.facts["perceptual"]["features"] == "clip"
    # Another run can take them from the file.
    clip = tmp_path / "clip.safetensors"
    other = override(config, [f'autoencoder.perceptual={{"files": ["{clip}"]}}'])
    assert list(other.loops) == ["autoencoder", "clip", "diffusion"]
    again = other.objective("autoencoder", data, tmp_path / "elsewhere", "cpu")
    a, b = data.images([0]), data.images([9])
    # The file is float16.
    assert torch.allclose(objective.perceptual.distance(a, b), again.perceptual.distance(a, b), rtol=2e-2)
    assert langevin.load(tmp_path / "model.safetensors").generate("a red circle", steps=1).images[0].size == (32, 32)


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("emoji", 'autoencoder.adversarial={"start": 1, "network": {"layers": 4}}', "is below the 48 that the disc"),
        ("shapes-inpainting", "diffusion.network.in_channels=4", "in_channels 4 is not latent_channels and 5 more, 9"),
        ("shapes-inpainting", 'condition={"kind": "depth"}', "in_channels 9 is not latent_channels and 1 more, 5"),
        ("shapes-inpainting", "condition.holes=1", "there is no field"),
        ("shapes-upscaler", "condition.size=16", "condition.size 16 is not a quarter of data.size 32"),
        ("shapes-upscaler", "autoencoder.network.channel_mult=[1, 1]", "makes the factor 2: the x4 upscaler has 4"),
        ("shapes-cascade", "small=12", "small 12 is not a proper divisor of data.size 32"),
        ("shapes-cascade", "upscaler.network.in_channels=3", "in_channels 3 is not that of two RGB pictures, 6"),
        ("shapes-cascade", "upscaler.largest_level=1000", "largest_level 1000: the schedule ends at 999"),
        ("latent-fashion-class", "diffusion.label_dropout=0", "needs a label_dropout above 0"),
        ("latent-fashion-class", "autoencoder.perceptual={}", "there is no clip stage here"),
    ],
)
def test_what_does_not_fit_together_is_refused(recipe: str, setting: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        override(RECIPES[recipe]().smallest(), [setting])
