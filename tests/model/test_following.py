"""Prompt-to-prompt and null-text optimisation on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from langevin.diffusion.grids import make_grid
from langevin.diffusion.guidance import guided
from langevin.diffusion.inversion import closed, ddim_decode, ddim_encode
from langevin.diffusion.samplers import final
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.following import following, token_map
from langevin.model.guided import conditioned
from langevin.model.null_text import null_text, null_text_guided

START, A, CAT, DOG, ON, GRASS, END = 1, 2, 3, 4, 5, 6, 9


def test_words_that_are_swapped_take_over_the_attention_of_those_before() -> None:
    tokens = token_map([START, A, CAT, END, END], [START, A, DOG, END, END])
    assert torch.equal(tokens.source, torch.eye(5))
    assert tokens.share.tolist() == [1] * 5 and tokens.weight.tolist() == [1] * 5


def test_a_longer_word_shares_it_out_and_a_shorter_one_adds_it_up() -> None:
    longer = token_map([START, A, CAT, END, END, END], [START, A, DOG, DOG, END, END])
    assert longer.source[2].tolist() == [0, 0, 0.5, 0.5, 0, 0]
    shorter = token_map([START, A, CAT, CAT, END, END], [START, A, DOG, END, END, END])
    assert shorter.source[:, 2].tolist() == [0, 0, 1, 1, 0, 0]
    assert shorter.share.tolist()[:4] == [1, 1, 1, 1]


def test_words_put_in_between_keep_their_own() -> None:
    tokens = token_map([START, A, CAT, END, END, END], [START, A, CAT, ON, GRASS, END])
    assert tokens.share.tolist() == [1, 1, 1, 0, 0, 1]
    assert tokens.source[2, 2] == 1 and tokens.source[:, 3].sum() == 0


def test_emphasis_is_on_every_place_of_the_word() -> None:
    tokens = token_map([START, A, CAT, END], [START, A, CAT, END], [([A, CAT], 2.0)])
    assert tokens.weight.tolist() == [1, 2, 2, 1]
    with pytest.raises(ValueError, match=r"tokens \[4\] are not in the text"):
        token_map([START], [START], [([DOG], 2.0)])


def told(bundle: ModelBundle, *prompts: str) -> tuple[list[Conditioning], list[tuple[int, ...]]]:
    assert bundle.text is not None
    encoded = bundle.text.encode(list(prompts))
    return [Conditioning(context=c[None]) for c in encoded.context], list(encoded.token_ids)


def walked(bundle: ModelBundle, cond: Conditioning) -> tuple[Tensor, list[Tensor]]:
    """A grid, and the states of an inversion on it from the top."""
    sigmas = closed(make_grid("trailing", bundle.diffusion.schedule, 4), bundle.diffusion.schedule.sigma_min)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    up = [x, *(step.x for step in ddim_encode(conditioned(bundle.diffusion, cond), x, sigmas))]
    return sigmas, up[::-1]


def test_a_target_that_is_the_source_is_the_source(tiny_bundle: ModelBundle) -> None:
    (cat,), (ids,) = told(tiny_bundle, "a cat")
    sigmas, states = walked(tiny_bundle, cat)
    at = dict(zip(sigmas.tolist(), states, strict=True))
    denoiser = following(tiny_bundle.diffusion, cat, cat, at, token_map(ids, ids), sigmas, cross=1.0, pixels=1.0)
    plain = conditioned(tiny_bundle.diffusion, cat)
    for s in sigmas.tolist()[:-1]:
        a, b = denoiser(at[s], s).x0, plain(at[s], s).x0
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def test_the_shares_say_how_long_it_follows(tiny_bundle: ModelBundle) -> None:
    (cat, dog), (a, b) = told(tiny_bundle, "a cat", "a dog")
    sigmas, states = walked(tiny_bundle, cat)
    at = dict(zip(sigmas.tolist(), states, strict=True))
    plain = conditioned(tiny_bundle.diffusion, dog)

    def follows(cross: float, pixels: float) -> list[bool]:
        denoiser = following(tiny_bundle.diffusion, cat, dog, at, token_map(a, b), sigmas, cross=cross, pixels=pixels)
        other = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        return [not torch.equal(denoiser(other * s, s).x0, plain(other * s, s).x0) for s in sigmas.tolist()[:-1]]

    assert follows(0.5, 0.0) == [True, True, False, False]
    assert follows(0.25, 0.75) == [True, True, True, False]
    assert follows(1.0, 0.0) == [True] * 4
    assert follows(0.0, 0.0) == [False] * 4


def test_null_text_passes_through_the_pivots_under_guidance(tiny_bundle: ModelBundle) -> None:
    model: DiffusionModel = tiny_bundle.diffusion
    (cat, nothing), _ = told(tiny_bundle, "a cat", "")
    sigmas, pivots = walked(tiny_bundle, cat)
    scale = 2.0
    with torch.inference_mode():  # the caller's mode does not matter
        fitted = list(null_text(model, cat, nothing, pivots, sigmas, scale, iterations=5, rate=0.2))
    contexts = [one.context for one in fitted]
    assert len(contexts) == 4 and all(c.shape == nothing.context.shape for c in contexts)  # type: ignore[union-attr]
    plain = conditioned(model, cat)
    before = final(ddim_decode(guided(plain, conditioned(model, nothing), scale), pivots[0], sigmas))
    after = final(ddim_decode(null_text_guided(model, plain, nothing, contexts, sigmas, scale), pivots[0], sigmas))
    miss = [float((x - pivots[-1]).square().mean()) for x in (before, after)]
    assert miss[1] < 0.5 * miss[0]
    assert not any(p.grad is not None for p in model.network.parameters())


def test_null_text_changes_nothing_where_nothing_is_missed(tiny_bundle: ModelBundle) -> None:
    """Without guidance the step does not depend on the context: the first one is kept, after one look."""
    (cat, nothing), _ = told(tiny_bundle, "a cat", "")
    sigmas, _ = walked(tiny_bundle, cat)
    x = torch.randn(1, 4, 8, 8) * float(sigmas[0])
    down = [x, *(step.x for step in ddim_decode(conditioned(tiny_bundle.diffusion, cat), x, sigmas))]
    for one in null_text(tiny_bundle.diffusion, cat, nothing, down, sigmas, 1.0):
        assert torch.equal(one.context, nothing.context) and one.loss < 1e-8  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a model with text"):
        next(null_text(tiny_bundle.diffusion, cat, replace(nothing, context=None), down, sigmas, 2.0))
