"""Options about the picture's area, through whole runs: tiles, wrapping edges, decoding in strips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from langevin.diffusion.core import Estimate
from langevin.errors import RequestError
from langevin.model.adapted import with_lora
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Adapter, Conditioning
from langevin.networks import strips
from langevin.networks.controlnet import ControlNet
from langevin.networks.lora import LoraWeights
from langevin.networks.unet import UNet
from langevin.tasks import (
    ControlRequest,
    GenerateRequest,
    ImageToImageRequest,
    InpaintRequest,
    InvertRequest,
    control,
    image_to_image,
    inpaint,
    run,
    text_to_image,
)
from langevin.tasks.area import Area
from langevin.tasks.inversion import Frame


def request(**options: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "a red apple", "steps": 2, "seed": 3, "guidance": 2.0, **options})


def first_estimate(bundle: ModelBundle, x: torch.Tensor, **options: Any) -> Estimate:
    plan = text_to_image(bundle, request(**options))
    with torch.no_grad():
        return plan.denoiser(x, float(plan.sigmas[0]))


def test_decoding_in_strips_changes_no_pixel_by_more_than_rounding(tiny_bundle: ModelBundle) -> None:
    results = [run(text_to_image(tiny_bundle, request(tiled_decode=t, width=40))).finish() for t in ("yes", "no")]
    assert torch.equal(results[0].latents, results[1].latents)
    first, second = (torch.tensor(list(r.images[0].tobytes())) for r in results)
    assert (first - second).abs().max() <= 1
    assert results[0].notices == results[1].notices == ()


def test_large_pictures_are_decoded_in_strips_and_it_is_said(tiny_bundle: ModelBundle) -> None:
    small = text_to_image(tiny_bundle, request(width=1024, height=1024))
    large = text_to_image(tiny_bundle, request(width=1028, height=1024))
    assert not small.notices
    assert large.notices == ("1028 x 1024: decoded in strips, which gives the same within rounding",)
    assert not text_to_image(tiny_bundle, request(width=1028, height=1024, tiled_decode="no")).notices


def test_what_a_picture_begins_with_is_encoded_in_strips(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the result is decoded in strips, in every task; the same within rounding."""
    picture = Image.linear_gradient("L").resize((40, 24)).convert("RGB")
    mask = Image.new("L", (40, 24), 0)
    mask.paste(255, (8, 8, 16, 16))
    common = {"prompt": "a red apple", "steps": 2, "seed": 3, "guidance": 1.0}
    steered = replace(tiny_bundle, controlnet=ControlNet.from_unet(cast(UNet, tiny_bundle.diffusion.network)))

    def starts(tiled: Any, compat: Any) -> list[torch.Tensor]:
        told: Any = {**common, "tiled_decode": tiled, "compat": compat}
        return [
            image_to_image(tiny_bundle, picture, ImageToImageRequest(**told)).x,
            inpaint(tiny_bundle, picture, InpaintRequest(**told, strength=0.5), mask=mask).x,
            control(steered, [picture], ControlRequest(**told), image=picture).x,
            Frame.of(tiny_bundle, picture, InvertRequest(prompt="a red apple", steps=2, tiled_decode=tiled)).x,
        ]

    seen = 0

    def encode(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        return whole(*given)

    whole = strips.encode
    monkeypatch.setattr(strips, "encode", encode)
    for compat in ("langevin", "diffusers"):
        for a, b in zip(starts("yes", compat), starts("no", compat), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert seen == 8


@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_seamless_pictures_may_be_moved_around(tiny_bundle: ModelBundle, axes: str) -> None:
    """The denoiser and the decoder of the plan are equivariant along the axes that wrap, and along no other."""
    plan = text_to_image(tiny_bundle, request(seamless=axes))
    for dimension, name in ((2, "y"), (3, "x")):
        moved = plan.x.roll(2, dimension)
        with torch.no_grad():
            ours, theirs = (plan.denoiser(x, 14.0).x0 for x in (moved, plan.x))
            pictures = [plan.decode(x) for x in (moved / 14, plan.x / 14)]
        for same in (
            torch.allclose(ours, theirs.roll(2, dimension), atol=1e-4),
            torch.allclose(pictures[0], pictures[1].roll(8, dimension), atol=1e-4),
        ):
            assert same == (axes in (name, "both"))


def test_seamless_tiles_go_across_the_edges(tiny_bundle: ModelBundle) -> None:
    """Moved by a tile's stride, which is 2 cells, a picture in tiles comes out moved."""
    plan = text_to_image(tiny_bundle, request(seamless="x", tile=16, width=32, height=16))
    with torch.no_grad():
        ours = plan.denoiser(plan.x.roll(2, 3), 14.0).x0
        theirs = plan.denoiser(plan.x, 14.0).x0.roll(2, 3)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_seamless_acts_on_models_with_adapters(tiny_bundle: ModelBundle) -> None:
    name = "input_blocks.1.0.in_layers.2"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, 3, 3, generator=generator), torch.randn(32, 2, 1, 1, generator=generator)
    adapted = with_lora(tiny_bundle, {"unet": {name: LoraWeights(down, up, 2.0)}}, 1.0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    plain, with_it = (first_estimate(bundle, x, seamless="both").x0 for bundle in (tiny_bundle, adapted))
    assert not torch.allclose(plain, with_it, atol=1e-3)
    assert torch.allclose(first_estimate(adapted, x.roll(4, 3), seamless="both").x0, with_it.roll(4, 3), atol=1e-4)


def test_tiles_are_averaged_with_what_belongs_to_each(tiny_bundle: ModelBundle) -> None:
    """The middle of the first of three tiles: what the model says of that tile by itself, where no other reaches."""
    x = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    whole = first_estimate(tiny_bundle, x, tile=32, width=64, height=32)
    alone = first_estimate(tiny_bundle, x[..., :8].contiguous(), width=32, height=32)
    assert torch.allclose(whole.x0[..., :4], alone.x0[..., :4], atol=1e-5)
    assert not torch.allclose(whole.x0, first_estimate(tiny_bundle, x, width=64, height=32).x0, atol=1e-2)


def test_one_tile_is_the_whole_and_has_no_effect(tiny_bundle: ModelBundle) -> None:
    plain, tiled = (run(text_to_image(tiny_bundle, request(tile=tile))).finish() for tile in (None, 64))
    assert torch.equal(plain.latents, tiled.latents)
    assert tiled.notices == ("a tile of 64 pixels covers the whole picture: tile has no effect",)


def test_pictures_in_tiles_do_not_depend_on_their_batch(tiny_bundle: ModelBundle) -> None:
    options = {"tile": 16, "seamless": "x", "tiled_decode": "yes"}
    both = run(text_to_image(tiny_bundle, request(count=2, **options))).finish()
    alone = run(text_to_image(tiny_bundle, request(seed=4, **options))).finish()
    assert both.images[1].tobytes() == alone.images[0].tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seamless": "x", "width": 36}, "width 36 is not a multiple of 8, as seamless needs; nearest: 32, 40"),
        ({"seamless": "both", "height": 33}, "height 33 is not a multiple of 8"),
        ({"seamless": "y", "height": 34, "tile": 16}, "height 34 is not a multiple of 4"),
        ({"tile": 4}, "tile 4 is out of bounds: give 8 to 4096"),
        ({"tile_overlap": 0.95}, "tile_overlap 0.95 is out of bounds: give 0 to 0.9"),
        ({"seamless": "z"}, "seamless 'z' is not known: use none, x, y or both"),
    ],
)
def test_what_cannot_be_is_refused(tiny_bundle: ModelBundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text_to_image(tiny_bundle, request(**options))


def test_the_model_itself_is_not_changed(tiny_bundle: ModelBundle) -> None:
    area = Area.of(
        request(width=32, height=32, seamless="both"), tiny_bundle.diffusion.network, tiny_bundle.autoencoder
    )
    assert area.network(tiny_bundle.diffusion.network) is not tiny_bundle.diffusion.network
    plain = replace(area, wraps=(False, False))
    assert plain.network(tiny_bundle.diffusion.network) is tiny_bundle.diffusion.network
    assert tiny_bundle.autoencoder is not None and not tiny_bundle.autoencoder.in_strips


def test_adapters_cannot_be_cut() -> None:
    tile = Area.of(request(width=64, height=32, tile=32), torch.nn.Identity(), None).tiles[0]
    told = Conditioning(adapters=(Adapter(features=(torch.zeros(1, 1, 4, 4),)),))
    with pytest.raises(RequestError, match="T2I-Adapters do not act in tiles"):
        told.within(tile)
