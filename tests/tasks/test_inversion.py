"""Inversion of pictures, files of noise, and what they lead back to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from langevin.diffusion.inversion import INVERSIONS
from langevin.errors import CheckpointError, DataError, NotFiniteError, RequestError
from langevin.images.pixels import to_pictures
from langevin.model.bundle import ModelBundle
from langevin.tasks import run
from langevin.tasks.inversion import Inverted, invert, regenerate
from langevin.tasks.inversion_request import InvertRequest
from langevin.tasks.latent_file import check_model, read_latent, write_latent
from langevin.tasks.options import choices


def picture(width: int = 32, height: int = 32) -> Image.Image:
    generator = torch.Generator().manual_seed(5)
    return to_pictures(torch.randn(1, 3, height, width, generator=generator) / 3)[0]


def calm_bundle(make_bundle: Any) -> ModelBundle:
    """A v network that says little: D is about x / (1 + sigma^2), the posterior mean of unit Gaussian latents. Random
    weights at full strength give steps that no state leads back from."""
    bundle: ModelBundle = make_bundle("v")
    last: Any = bundle.diffusion.network.out[2]  # type: ignore[index]
    last.weight.mul_(0.2)
    last.bias.mul_(0.2)
    return bundle


@pytest.fixture(scope="module")
def calm(make_bundle: Any) -> ModelBundle:
    return calm_bundle(make_bundle)


def found(bundle: ModelBundle, given: Image.Image | None = None, **options: Any) -> Inverted:
    basic = {"prompt": "a red apple", "steps": 3, "seed": 0}
    return invert(bundle, given or picture(), InvertRequest(**{**basic, **options}))


def test_the_methods_are_these() -> None:
    assert set(choices(InvertRequest.model_fields["inversion"].annotation)) == {*INVERSIONS, "null_text"}


@pytest.mark.parametrize("name", ["fixed_point", "edict", "bdia"])
def test_the_clean_latents_come_back_in_float32(calm: ModelBundle, name: str) -> None:
    """Under guidance too. In units of the largest."""
    inverted = found(calm, inversion=name, steps=6, guidance=2.0)
    again = run(regenerate(calm, inverted)).finish()
    clean = inverted.states[-1]
    assert float((again.latents - clean).abs().max()) <= 2e-4 * float(clean.abs().max())
    assert inverted.psnr == pytest.approx(inverted.autoencoder_psnr, abs=0.02)
    assert f"inversion {name}: the picture comes back with PSNR" in inverted.notices[-1]
    assert inverted.request.guidance == 2.0


def test_ddim_is_less_exact_and_says_by_how_much(calm: ModelBundle) -> None:
    inverted = found(calm, inversion="ddim", guidance=4.0)
    assert inverted.psnr < inverted.autoencoder_psnr
    assert f"PSNR {inverted.psnr:.2f} dB (the autoencoder alone: {inverted.autoencoder_psnr:.2f} dB)" in "".join(
        inverted.notices
    )
    assert inverted.notices[-1].startswith("ddim inversion knows no guidance")
    assert torch.equal(inverted.x, found(calm, inversion="ddim").x)  # found without it


def test_the_grid_goes_from_the_least_level_to_the_largest(tiny_bundle: ModelBundle) -> None:
    schedule = tiny_bundle.diffusion.schedule
    whole, part = found(tiny_bundle, inversion="ddim"), found(tiny_bundle, inversion="ddim", strength=0.5)
    assert float(whole.sigmas[0]) == schedule.sigma_max and float(whole.sigmas[-1]) == schedule.sigma_min
    assert len(whole.states) == len(whole.sigmas) == 4
    assert float(part.sigmas[0]) < 3 and len(part.sigmas) == 3
    assert torch.equal(whole.states[0], whole.x) and torch.equal(whole.states[-1], part.states[-1])


def test_any_size_and_mode(tiny_bundle: ModelBundle) -> None:
    given = picture(30, 21).convert("RGBA")
    inverted = found(tiny_bundle, given, inversion="bdia", steps=2)
    assert inverted.x.shape == (1, 8, 6, 8)
    assert (inverted.request.width, inverted.request.height) == (30, 21)
    assert run(regenerate(tiny_bundle, inverted)).finish().images[0].size == (30, 21)
    wider = found(tiny_bundle, given, inversion="ddim", steps=1, width=40)
    assert wider.x.shape == (1, 4, 6, 10)
    assert "the picture: 30 x 21 pixels are stretched to 40 x 21" in wider.notices


def test_null_text_brings_guidance_back(make_bundle: Any) -> None:
    bundle = make_bundle("v")
    plain = found(bundle, inversion="ddim", steps=2, guidance=3.0)
    fitted = found(bundle, inversion="null_text", steps=2, guidance=3.0, iterations=2)
    assert torch.equal(fitted.x, plain.x)
    misses = [run(regenerate(bundle, one)).finish().latents - one.states[-1] for one in (plain, fitted)]
    assert float(misses[1].square().mean()) < 0.97 * float(misses[0].square().mean())
    assert fitted.contexts is not None and fitted.contexts.shape == (2, 77, 32)
    assert found(bundle, inversion="null_text", steps=1, iterations=1).request.guidance == 5.0  # the model's


def test_progress_is_told_and_stops(tiny_bundle: ModelBundle) -> None:
    shares: list[float] = []
    request = InvertRequest(prompt="a", steps=2, inversion="ddim")
    invert(tiny_bundle, picture(), request, finished=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(tiny_bundle, picture(), request, finished=stop)


def test_a_file_leads_back_to_the_same_picture(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    inverted = found(tiny_bundle, inversion="null_text", guidance=2.0, steps=2, iterations=1)
    path = tmp_path / "latent.safetensors"
    write_latent(path, inverted)
    read = read_latent(path)
    assert read.request == inverted.request
    assert torch.equal(read.x, inverted.x) and torch.equal(read.sigmas, inverted.sigmas)
    assert (read.psnr, read.autoencoder_psnr) == (inverted.psnr, inverted.autoencoder_psnr)
    a, b = (run(regenerate(tiny_bundle, one)).finish() for one in (inverted, read))
    assert torch.equal(a.latents, b.latents)
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        metadata = file.metadata()
    assert metadata["prompt"] == "a red apple" and metadata["model"] == "tiny"
    told = json.loads(metadata["langevin"])
    assert told["inputs"][0]["width"] == 32 and told["method"] == "null_text"
    manifest = b.manifests[0]
    assert manifest["task"] == "regenerate" and manifest["inversion"]["psnr"] == inverted.psnr
    assert manifest["inputs"] == told["inputs"] and len(manifest["timesteps"]) == 2


def test_another_prompt_gives_another_picture(tiny_bundle: ModelBundle) -> None:
    inverted = found(tiny_bundle, inversion="ddim")
    same, other = (run(regenerate(tiny_bundle, inverted, **c)).finish() for c in ({}, {"prompt": "a dog"}))
    assert not torch.equal(same.latents, other.latents)
    assert other.plan.request.prompt == "a dog" and other.plan.request.found_prompt == "a red apple"  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="steps cannot be changed: the noise was found with it"):
        regenerate(tiny_bundle, inverted, steps=7)


@pytest.mark.parametrize("changed", ["format", "request", "sigmas", "x", "nan", "key", "psnr", "contexts"])
def test_a_damaged_file_is_refused_in_one_line(tiny_bundle: ModelBundle, tmp_path: Path, changed: str) -> None:
    path = tmp_path / "latent.safetensors"
    write_latent(path, found(tiny_bundle, inversion="ddim", steps=1))
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    told = json.loads(metadata["langevin"])
    match changed:
        case "format":
            told["format"] = 9
        case "request":
            told["request"]["steps"] = 0
        case "sigmas":
            tensors["sigmas"] = tensors["sigmas"].flip(0).clone()
        case "x":
            tensors["x"] = tensors["x"][0]
        case "nan":
            tensors["x"] = tensors["x"] * math.nan
        case "key":
            del told["inputs"]
        case "psnr":
            told["psnr"] = "high"
        case "contexts":
            tensors["contexts"] = torch.zeros(1, 77, 32)
    save_file(tensors, path, {**metadata, "langevin": json.dumps(told)})
    with pytest.raises((DataError, RequestError)) as error:
        read_latent(path)
    assert "\n" not in str(error.value)
    save_file(tensors, path)
    with pytest.raises(DataError, match="is not a file of inverted noise"):
        read_latent(path)


def test_other_weights_and_other_shapes_are_refused(
    tiny_bundle: ModelBundle, make_bundle: Any, model_file: Path
) -> None:
    from langevin.checkpoints.loader import load_bundle

    loaded = load_bundle(str(model_file))
    inverted = found(loaded, inversion="ddim", steps=1)
    check_model(inverted, loaded)
    with pytest.raises(CheckpointError, match="is not the model that the noise was found with: no file has SHA-256"):
        check_model(inverted, tiny_bundle)
    with pytest.raises(RequestError, match=r"noise of shape \[1, 4, 8, 8\]: model tiny takes \[1, 8, 8, 8\]"):
        wrong = Inverted(**{**vars(inverted), "request": inverted.request.changed(inversion="edict")})
        regenerate(tiny_bundle, wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler_ancestral"}, "sampler 'euler_ancestral' cannot be turned round"),
        ({"sampler": "dpmpp_2m_sde"}, "cannot be turned round"),
        ({"eta": 0.5}, "eta 0.5 draws fresh noise"),
        ({"sampler_options": {"order": 2}}, "option 'order' is of a sampler"),
        ({"count": 2}, "2 pictures were asked for"),
        ({"mode": "fast"}, "mode 'fast'"),
        ({"compat": "a1111"}, "compat 'a1111' has no inversion"),
        ({"inversion": "edict", "iterations": 3}, "inversion edict has none"),
        ({"inversion": "null_text", "rescale": 0.5}, "null_text is fitted to plain guidance"),
        ({"inversion": "null_text", "tile": 16}, "tile and null_text do not go together"),
        ({"strength": 0.0}, "strength 0.0 is out of bounds"),
        ({"prompt": None}, "prompt is missing"),
        ({"sigmas": [2.0, 0.0], "strength": 0.001}, "1 steps leave nothing to turn round"),
        ({"prompt": "[a:b:0.5]", "inversion": "null_text"}, "changes over the run cannot be followed"),
    ],
)
def test_what_cannot_be_inverted_is_refused(tiny_bundle: ModelBundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        found(tiny_bundle, **{**options, **({"steps": None} if "sigmas" in options else {})})
    assert "\n" not in str(error.value)


def test_what_is_not_finite_names_the_step(make_bundle: Any) -> None:
    bundle = make_bundle()
    bundle.diffusion.network.out[2].bias.fill_(math.inf)
    with pytest.raises(NotFiniteError, match="inversion, step 1: NaN or infinity at sigma"):
        found(bundle, inversion="ddim")


def test_the_seed_does_not_matter(calm: ModelBundle) -> None:
    a, b = found(calm, seed=1, steps=1, inversion="ddim"), found(calm, seed=2, steps=1, inversion="ddim")
    assert torch.equal(a.x, b.x)
