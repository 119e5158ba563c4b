"""Editing by inversion on a tiny model."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.test_inversion import calm_bundle, picture

from langevin.diffusion.core import Estimate
from langevin.diffusion.diffedit import changed_where, disagreement
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.model.local_blend import LocalBlend
from langevin.tasks import Result, run
from langevin.tasks.editing import edit
from langevin.tasks.inversion_request import EditRequest


def edited(bundle: ModelBundle, given: Image.Image | None = None, **options: Any) -> Result:
    basic = {"source": "a cat", "prompt": "a dog", "steps": 3, "seed": 0, "inversion": "ddim", "guidance": 2.0}
    return run(edit(bundle, given or picture(), EditRequest(**{**basic, **options}))).finish()


@pytest.fixture(scope="module")
def calm(make_bundle: Any) -> ModelBundle:
    return calm_bundle(make_bundle)


@pytest.mark.parametrize("method", ["prompt_to_prompt", "plain"])
def test_the_same_text_leaves_the_picture_as_it_is(calm: ModelBundle, method: str) -> None:
    """Whatever the guidance: it leads away from what it leads to."""
    result = edited(calm, prompt="a cat", method=method, inversion="fixed_point", steps=4, guidance=7.0)
    inversion = result.manifests[0]["inversion"]
    assert inversion["psnr"] == pytest.approx(inversion["autoencoder_psnr"], abs=0.05)
    other = edited(calm, prompt="a cat", method="plain", inversion="fixed_point", steps=4, guidance=1.0)
    gap = np.abs(np.asarray(result.images[0], int) - np.asarray(other.images[0], int))
    assert gap.max() <= 2


def test_every_run_reports_the_psnr(calm: ModelBundle) -> None:
    result = edited(calm)
    assert any("the picture comes back with PSNR" in notice for notice in result.notices)
    manifest = result.manifests[0]
    assert manifest["task"] == "edit" and manifest["inversion"]["psnr"] > 0
    assert manifest["request"]["negative"] == "a cat" and manifest["request"]["source"] == "a cat"
    assert manifest["inputs"][0]["role"] == "image"
    assert manifest["edit"]["tokens_followed"] == 77


def test_methods_and_shares_differ(calm: ModelBundle) -> None:
    results = [
        edited(calm, method="plain"),
        edited(calm),
        edited(calm, self_share=1.0),
        edited(calm, cross_share=0.0, self_share=0.0),
        edited(calm, emphasis={"dog": 4.0}),
    ]
    latents = [result.latents for result in results]
    torch.testing.assert_close(latents[0], latents[3], rtol=0, atol=1e-4)  # nothing followed
    for i, j in ((0, 1), (1, 2), (1, 4)):
        assert float((latents[i] - latents[j]).abs().max()) > 1e-3, (i, j)


def test_words_say_where_the_picture_is_changed(calm: ModelBundle) -> None:
    """Above the highest attention there is no place: the inversion's own last state. From 0 on it is every place."""
    nowhere, somewhere, everywhere = (edited(calm, local=("dog", "cat"), local_threshold=k) for k in (1.0, 0.9, 0.0))
    blend = somewhere.plan.sampler
    assert isinstance(blend, LocalBlend)
    kept = blend.states[-1] * somewhere.plan.final_scale
    assert torch.equal(nowhere.latents, kept)
    torch.testing.assert_close(everywhere.latents, edited(calm).latents, rtol=0, atol=1e-4)
    same = (somewhere.latents == kept).all(1)
    assert 0 < same.float().mean() < 1
    assert somewhere.plan.request.local == ("dog", "cat")  # type: ignore[attr-defined]
    again = EditRequest(**somewhere.manifests[0]["request"])
    assert torch.equal(run(edit(calm, picture(), again)).finish().latents, somewhere.latents)


def test_words_that_are_in_neither_text_are_refused(calm: ModelBundle) -> None:
    with pytest.raises(RequestError, match="local: 'house' is in neither text"):
        edited(calm, local=("house",))
    with pytest.raises(RequestError, match="local is of prompt_to_prompt: method plain has none"):
        edited(calm, local=("dog",), method="plain")
    with pytest.raises(RequestError, match="local_threshold is of local"):
        edited(calm, local_threshold=0.5)


def test_all_inversions_serve(calm: ModelBundle) -> None:
    for options in (
        {"inversion": "edict", "method": "plain", "negative": ""},
        {"inversion": "bdia", "method": "plain"},
        {"inversion": "null_text", "iterations": 1, "steps": 2},
        {"inversion": "null_text", "iterations": 1, "steps": 1, "method": "plain", "strength": 0.5},
    ):
        result = edited(calm, **options)
        assert result.images[0].size == (32, 32), options
        assert not torch.equal(result.latents, torch.zeros_like(result.latents))


def test_a_run_is_planned_again_alike(calm: ModelBundle) -> None:
    first = edited(calm, method="diffedit", mask_samples=2)
    request = EditRequest(**first.manifests[0]["request"])
    again = run(edit(calm, picture(), request)).finish()
    assert again.images[0].tobytes() == first.images[0].tobytes()
    assert again.plan.request == first.plan.request


def test_threads_edit_beside_each_other(calm: ModelBundle) -> None:
    plans = [
        edit(calm, picture(), EditRequest(source="a cat", prompt=p, steps=2, seed=0, inversion="ddim", guidance=2.0))
        for p in ("a dog", "a red apple")
    ]
    alone = [run(plan).finish().latents for plan in plans]
    found: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: run(plans[i % 2]).finish().latents})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], alone[i % 2]) for i in range(4))


# -- DiffEdit ------------------------------------------------------------------------------------------------------


def test_the_mask_is_where_the_denoisers_disagree() -> None:
    clean = torch.zeros(1, 4, 6, 6)
    change = torch.zeros(1, 1, 6, 6)
    change[..., 1:3, 2:5] = 2.0
    change[..., 5, 5] = 0.1  # little
    change[..., 0, 0] = 100.0  # counts as three times the mean
    noises = [torch.randn(1, 4, 6, 6) for _ in range(3)]
    mask = disagreement(
        lambda x, s: Estimate(x / (1 + s)), lambda x, s: Estimate(x / (1 + s) + change), clean, 1.0, noises
    )
    wanted = change.clamp(max=3 * change.mean()) > 0.5 * 3 * change.mean()
    assert mask.dtype == torch.bool and torch.equal(mask, wanted)
    moderate = change.clamp(max=2.0)
    mask = disagreement(lambda x, s: Estimate(x), lambda x, s: Estimate(x - moderate), clean, 1.0, noises)
    assert torch.equal(mask, moderate > 1)
    assert not disagreement(lambda x, s: Estimate(x), lambda x, s: Estimate(x), clean, 1.0, noises).any()


def test_outside_the_mask_every_state_is_the_pictures() -> None:
    sigmas = torch.tensor([5.0, 1.0, 0.1], dtype=torch.float64)
    states = [torch.randn(1, 4, 6, 6) for _ in sigmas]
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., :3] = True
    for step in changed_where(mask, states, lambda x, s: Estimate(x / 2), states[0], sigmas):
        assert torch.equal(step.x[..., 3:], states[step.index + 1][..., 3:])
        assert not torch.equal(step.x[..., :3], states[step.index + 1][..., :3])


@pytest.mark.parametrize("size", [(32, 32), (30, 21)])
def test_pixels_outside_the_mask_are_the_pictures_bit_for_bit(calm: ModelBundle, size: tuple[int, int]) -> None:
    given = picture(*size)
    result = edited(calm, given, method="diffedit", mask_samples=2, steps=2)
    share = result.manifests[0]["edit"]["mask_share"]
    same = (np.asarray(result.images[0]) == np.asarray(given)).all(-1)
    assert 0 < share < 1 and result.images[0].size == size
    assert same.mean() == pytest.approx(1 - share, abs=0.12)
    assert any("the pixels outside are kept" in notice for notice in result.notices)
    assert result.plan.request.strength == 0.8  # type: ignore[attr-defined]


def test_texts_that_agree_are_refused(calm: ModelBundle) -> None:
    with pytest.raises(RequestError, match="do not disagree anywhere"):
        edited(calm, prompt="a cat", method="diffedit", mask_samples=1, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": None}, "source is missing: say with --from"),
        ({"prompt": None}, "prompt is missing: say with --to"),
        ({"inversion": "edict"}, "follows one state, edict has two"),
        ({"inversion": "bdia", "method": "diffedit"}, "follows one state"),
        ({"inversion": "null_text", "method": "diffedit"}, "does not use a fitted text"),
        ({"method": "plain", "cross_share": 0.5}, "cross_share is of prompt_to_prompt"),
        ({"mask_samples": 3}, "mask_samples is of diffedit"),
        ({"emphasis": {"bird": 2.0}}, r"emphasis: not all of \['bird'\] are words of the new text"),
        ({"prompt": "[a cat:a dog:0.5]", "steps": 2}, "changes over the run cannot be followed"),
        ({"prompt": "a dog BREAK a cat"}, "the two texts fill 77 and 154 tokens"),
        ({"seamless": "x"}, "seamless and method prompt_to_prompt do not go together"),
        ({"source": "a cat <lora:none:1>"}, "names a file|none"),
        ({"method": "diff"}, "use prompt_to_prompt, diffedit or plain"),
    ],
)
def test_what_cannot_be_edited_is_refused(calm: ModelBundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        edited(calm, **{"steps": 1, **options})
    assert "\n" not in str(error.value)
