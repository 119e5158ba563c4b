"""Inpainting and outpainting: what stays, what changes, what it costs, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.images.test_pasting import FILES, random_picture

from langevin.diffusion.core import Estimate
from langevin.diffusion.inpainting import keep_until, resampled
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import get_sampler
from langevin.errors import RequestError
from langevin.images.masks import mask_of_box
from langevin.images.pasting import same_outside, stored
from langevin.images.pixels import to_tensor
from langevin.model.bundle import ModelBundle
from langevin.networks.unet import UNet
from langevin.tasks import InpaintRequest, OutpaintRequest, Plan, inpaint, outpaint, run
from langevin.tasks.outpainting import seam
from langevin.tasks.pictures import encode_picture


def picture(mode: str = "RGB", width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    return random_picture(mode, width, height, np.random.default_rng(seed))


def plan(
    bundle: ModelBundle, given: Image.Image | None = None, mask: Image.Image | None = None, **options: Any
) -> Plan:
    options = {"prompt": "a red apple", "seed": 7, "steps": 2, **options}
    if mask is None and not {"box", "polygon", "alpha"} & set(options):
        options["box"] = (9, 6, 22, 25)
    return inpaint(bundle, picture() if given is None else given, InpaintRequest(**options), mask=mask)


def for_inpainting(bundle: ModelBundle) -> ModelBundle:
    """The same model with 9 input channels."""
    network = bundle.diffusion.network
    assert isinstance(network, UNet)
    wide = UNet(replace(network.config, in_channels=9)).eval().requires_grad_(False)
    state = network.state_dict()
    weight = torch.randn(wide.state_dict()["input_blocks.0.0.weight"].shape, generator=torch.Generator().manual_seed(3))
    wide.load_state_dict({**state, "input_blocks.0.0.weight": 0.1 * weight})
    return replace(bundle, diffusion=replace(bundle.diffusion, network=wide),
                   info=replace(bundle.info, task="inpainting"))  # fmt: skip


@pytest.fixture(scope="module")
def nine(tiny_bundle: ModelBundle) -> ModelBundle:
    return for_inpainting(tiny_bundle)


def test_outside_the_mask_every_bit_stays_in_every_mode_size_and_model(
    tiny_bundle: ModelBundle, nine: ModelBundle
) -> None:
    generator = np.random.default_rng(5)
    for number, mode in enumerate([*FILES, *FILES]):
        width, height = (int(side) for side in generator.integers(8, 41, 2))
        given = random_picture(mode, width, height, generator)
        mask = generator.integers(0, 2, (height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
        mask[0, 0], mask[-1, -1] = 0, 1
        options: dict[str, Any] = {"steps": 1, "sampler": "euler", "guidance": 1.0, "feather": number % 3}
        if number % 4 == 3:
            options |= {"only_masked": True, "padding": 3}
        p = plan(nine if number % 2 else tiny_bundle, given, Image.fromarray(np.uint8(mask * 255)), **options)
        result = run(p).finish().images[0]
        assert same_outside(given, result, mask > 0), (mode, width, height)
        assert not same_outside(given, result, np.zeros_like(mask, bool)), (mode, "nothing was painted")


def test_old_pixels_stay_when_a_picture_is_continued(tiny_bundle: ModelBundle) -> None:
    generator = np.random.default_rng(6)
    for number, mode in enumerate(FILES):
        given = random_picture(mode, *(int(side) for side in generator.integers(8, 25, 2)), generator)
        left, top, right, bottom = (int(side) for side in generator.integers(0, 12, 4))
        request = OutpaintRequest(prompt="a", seed=1, steps=1, sampler="euler", guidance=1.0, left=left, top=top,
                                  right=right, bottom=bottom + 1, fill=("edge", "reflect")[number % 2])  # fmt: skip
        made = run(outpaint(tiny_bundle, given, request)).finish()
        assert made.images[0].size == (given.width + left + right, given.height + top + bottom + 1)
        inner = stored(made.images[0])[top : top + given.height, left : left + given.width]
        assert inner.tobytes() == stored(given).tobytes(), mode
        measured = made.manifests[0]["picture"]["measured"]
        assert measured["seam_step"] >= 0 and any("seam_step" in notice for notice in made.notices)


def test_a_factor_leaves_the_picture_in_the_middle(tiny_bundle: ModelBundle) -> None:
    request = OutpaintRequest(prompt="a", seed=1, steps=1, factor=1.5)
    assert request.margins(30, 21) == (7, 5, 8, 5)
    assert run(outpaint(tiny_bundle, picture(width=30, height=21), request)).finish().images[0].size == (45, 31)


def test_the_seam_is_measured() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:] = 60
    pixels[:, 5] = 70
    new = np.zeros((4, 6), bool)
    new[:, 3:] = True
    found = seam(Image.fromarray(pixels), new)
    assert found["seam_step"] == 60 and found["inner_step"] == pytest.approx(4 * 10 / (4 * 4 + 3 * 6))
    assert seam(Image.new("L", (6, 4)), new) == {"seam_step": 0.0, "inner_step": 0.0}


def test_the_known_part_is_known_to_the_sampler(tiny_bundle: ModelBundle) -> None:
    """A cell of the latents that the mask does not touch has its clean value in every estimate."""
    p = plan(tiny_bundle, box=(9, 6, 22, 25))
    known = encode_picture(tiny_bundle.autoencoder, to_tensor(picture()))
    cells = torch.from_numpy(mask_of_box(32, 32, (8, 4, 24, 28)))[::4, ::4] > 0
    x0 = p.denoiser(p.x, float(p.sigmas[0])).x0
    assert torch.equal(x0[..., ~cells], known[..., ~cells]) and not torch.equal(x0[..., cells], known[..., cells])
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7)) * float(p.sigmas[0])
    assert torch.equal(p.x[..., cells], noise[..., cells])  # at strength 1 nothing is left of what was there
    assert torch.equal(p.x[..., ~cells], (known + noise)[..., ~cells])


def test_soft_masks_free_each_place_at_its_own_level(tiny_bundle: ModelBundle) -> None:
    grey = np.zeros((32, 32), np.uint8)
    grey[:, 8:16], grey[:, 16:24], grey[:, 24:] = 64, 128, 255
    p = plan(tiny_bundle, mask=Image.fromarray(grey), soft=True, steps=8)
    known = encode_picture(tiny_bundle.autoencoder, to_tensor(picture()))
    freed = []
    for sigma in p.sigmas[:-1].tolist():
        x0 = p.denoiser(p.x, sigma).x0
        freed.append([not torch.equal(x0[..., i : i + 2], known[..., i : i + 2]) for i in (0, 2, 4, 6)])
    assert [sum(column) for column in zip(*freed, strict=True)] == [0, 2, 4, 8]  # of 8 steps
    given = picture()
    assert same_outside(given, run(p).finish().images[0], grey > 0)
    levels = torch.tensor([2.0, -1.0]).view(1, 1, 1, 2)
    free = keep_until(lambda x, sigma: Estimate(x), torch.zeros(1, 1, 1, 2), levels)
    assert free(torch.ones(1, 1, 1, 2), 2.0).x0.flatten().tolist() == [1.0, 0.0]
    assert free(torch.ones(1, 1, 1, 2), 2.1).x0.flatten().tolist() == [0.0, 0.0]


def test_the_model_for_inpainting_sees_mask_and_what_it_leaves(nine: ModelBundle) -> None:
    """Stable Diffusion's order: latents, mask, latents of the picture with grey under the mask."""
    seen: list[torch.Tensor] = []
    network = nine.diffusion.network
    hook = network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    p = plan(nine, box=(8, 4, 24, 28), guidance=1.0)
    p.denoiser(p.x, float(p.sigmas[0]))
    hook.remove()
    white = torch.from_numpy(mask_of_box(32, 32, (8, 4, 24, 28))) > 0
    left = encode_picture(nine.autoencoder, to_tensor(picture()) * ~white)
    assert torch.equal(seen[0][:, 4], white[None, ::4, ::4].float()) and torch.equal(seen[0][:, 5:], left)


def test_resampling_costs_what_it_says_and_its_state_has_the_right_noise(tiny_bundle: ModelBundle) -> None:
    plain = plan(tiny_bundle, steps=4)
    p = plan(tiny_bundle, steps=4, resample=3, jump=2)
    assert (plain.calls, p.calls) == (4, 12)
    assert "resample 3: 12 network calls a picture instead of 4" in p.notices
    running = run(p)
    assert [step.index for step in running] == list(range(12)) and running.progress == 1
    # Data of no variance: at each level the state is x0 + sigma noise, resampled or not.
    seen: list[tuple[float, float]] = []

    def nothing(x: torch.Tensor, sigma: float) -> Estimate:
        seen.append((sigma, float(x.std())))
        return Estimate(torch.zeros_like(x))

    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    noise = Noise([1], (4, 64, 64))
    list(resampled(get_sampler("euler").function, 4, 3)(nothing, 10 * noise.initial(), sigmas, noise))
    assert [round(sigma) for sigma, _ in seen] == [10, 5, 2] * 4 + [1] * 4
    assert all(deviation == pytest.approx(sigma, rel=0.03) for sigma, deviation in seen)


@pytest.mark.parametrize(
    "options", [{}, {"resample": 2, "sampler": "dpmpp_sde"}, {"compat": "diffusers", "sampler": "euler_ancestral"}]
)
def test_each_picture_is_what_it_is_alone(tiny_bundle: ModelBundle, options: dict[str, Any]) -> None:
    several = run(plan(tiny_bundle, count=2, **options)).finish()
    for i, image in enumerate(several.images):
        assert image.tobytes() == run(plan(tiny_bundle, seed=7 + i, **options)).finish().images[0].tobytes()
    assert several.images[0].tobytes() != several.images[1].tobytes()


def test_only_the_masked_area_is_worked_on_at_the_models_size(tiny_bundle: ModelBundle) -> None:
    p = plan(tiny_bundle, picture(width=200, height=90), box=(100, 40, 108, 44), only_masked=True, padding=4)
    assert (p.request.width, p.request.height) == (32, 32)
    assert "only 96,34 to 112,50 is worked on, at 32 x 32" in p.notices
    assert run(p).finish().images[0].size == (200, 90)


def test_masks_by_alpha_polygon_inverted_and_grown(tiny_bundle: ModelBundle) -> None:
    given = picture("RGBA")
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[4:12, 4:12] = 0
    given.putalpha(Image.fromarray(alpha))
    for options, box in (
        ({"alpha": True}, (4, 4, 12, 12)),
        ({"alpha": True, "grow": 2}, (2, 2, 14, 14)),
        ({"alpha": True, "grow": -2}, (6, 6, 10, 10)),
        ({"polygon": (4, 4, 11, 4, 11, 11, 4, 11)}, (4, 4, 12, 12)),
    ):
        inside = mask_of_box(32, 32, box) > 0
        for invert in (False, True):
            where = inside ^ invert
            if invert and "grow" in options:
                continue
            result = run(plan(tiny_bundle, given, steps=1, invert=invert, **options)).finish().images[0]
            assert same_outside(given, result, where) and not same_outside(given, result, np.zeros_like(where))
            assert (stored(result)[where][:, 3] == 255).all()


@pytest.mark.parametrize(
    ("options", "mask", "message"),
    [
        ({}, (32, 31), "the mask has 32 x 31 pixels, the picture 32 x 32: make them equal"),
        ({"box": (1, 1, 9, 9)}, (32, 32), "mask and box were given: give one of"),
        ({"alpha": True}, None, "no transparent parts"),
        ({"box": (40, 1, 50, 9)}, None, "the mask is empty, after box: nothing in it is white"),
        ({"box": (1, 1, 3, 3), "grow": -5}, None, "the mask is empty, after box, grow -5"),
        ({"polygon": (1, 1, 2, 2, 3, 3, 4)}, None, "polygon has 7 numbers"),
        ({"resample": 2, "compat": "diffusers", "box": (0, 0, 9, 9)}, None, "has no RePaint"),
        ({"compat": "diffusers", "box": (1, 1, 3, 3)}, None, "smaller than a cell"),
    ],
)
def test_masks_that_say_nothing_are_refused(
    tiny_bundle: ModelBundle, options: dict[str, Any], mask: tuple[int, int] | None, message: str
) -> None:
    drawn = None if mask is None else Image.new("L", mask, 255)
    with pytest.raises(RequestError, match=message):
        request = InpaintRequest(prompt="a", seed=1, steps=1, **options)
        inpaint(tiny_bundle, picture(), request, mask=drawn)


def test_models_and_options_that_do_not_go_together(tiny_bundle: ModelBundle, nine: ModelBundle) -> None:
    for task in ("depth", "upscaling"):
        other = replace(tiny_bundle, info=replace(tiny_bundle.info, task=task))
        with pytest.raises(RequestError, match=f"is for {task}: give one for inpainting, or a text-to-image model"):
            plan(other)
    with pytest.raises(RequestError, match="soft masks are for text-to-image models"):
        plan(nine, soft=True)
    with pytest.raises(RequestError, match="2 pictures with compat 'diffusers'"):
        plan(nine, compat="diffusers", sampler="euler", count=2)


def test_the_mask_is_named_in_the_manifest(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "m.png")
    request = InpaintRequest(prompt="a", seed=1, steps=1)
    made = run(inpaint(tiny_bundle, tmp_path / "a.png", request, mask=tmp_path / "m.png")).finish().manifests[0]
    assert made["task"] == "inpainting"
    assert [(i["role"], i["name"]) for i in made["inputs"]] == [("image", "a.png"), ("mask", "m.png")]
