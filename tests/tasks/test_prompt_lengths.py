"""Prompt and negative prompt of different numbers of chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langevin.model.bundle import ModelBundle
from langevin.tasks.prompts import Texts, encode_prompts
from langevin.tasks.request import GenerateRequest

TWO, THREE = "red BREAK apple", "a BREAK cat BREAK dog"


def texts(bundle: ModelBundle, **values: Any) -> Texts:
    assert bundle.text is not None
    return encode_prompts(bundle.text, torch.zeros(1), GenerateRequest(**values), torch.tensor([9.0, 3.0, 1.0, 0.0]))


def alone(bundle: ModelBundle, prompt: str, weighting: str = "a1111") -> torch.Tensor:
    assert bundle.text is not None
    return bundle.text.encode([prompt], weighting=weighting).context


def test_empty_chunks_fill_the_shorter(tiny_bundle: ModelBundle) -> None:
    found = texts(tiny_bundle, prompt=THREE, negative=TWO)
    ((_, cond, uncond),) = found.conditionings
    assert cond.context is not None and uncond.context is not None
    assert torch.equal(cond.context, alone(tiny_bundle, THREE))
    assert torch.equal(uncond.context, torch.cat([alone(tiny_bundle, TWO), alone(tiny_bundle, "")], 1))
    assert [len(found.tokens[name][0]["ids"]) for name in ("prompt", "negative")] == [231, 231]  # type: ignore[arg-type]


def test_own_lengths_where_the_program_has_them(tiny_bundle: ModelBundle) -> None:
    found = texts(tiny_bundle, prompt=THREE, negative=TWO, compat="a1111")
    ((_, cond, uncond),) = found.conditionings
    assert cond.context is not None and uncond.context is not None
    assert torch.equal(cond.context, alone(tiny_bundle, THREE).repeat(1, 2, 1))
    assert torch.equal(uncond.context, alone(tiny_bundle, TWO).repeat(1, 3, 1))
    assert [len(found.tokens[name][0]["ids"]) for name in ("prompt", "negative")] == [231, 154]  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [TWO, "[a|b BREAK c]"])
def test_repeated_states_are_the_states(tiny_bundle: ModelBundle, prompt: str) -> None:
    """The network's answer is the same, but for rounding, as to the prompt at its own length."""
    found = texts(tiny_bundle, prompt=prompt, negative=THREE, compat="a1111")
    for _, cond, _ in found.conditionings:
        assert cond.context is not None
        own = cond.context[:, : 2 * 77]
        z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
        network = tiny_bundle.diffusion.network
        with torch.no_grad():
            assert torch.allclose(network(z, t, context=cond.context), network(z, t, context=own), atol=1e-5)


def test_equal_prompts_are_encoded_once(make_bundle: Any) -> None:
    bundle = make_bundle()
    assert bundle.text is not None
    texts(bundle, prompt="a cat", negative="a cat", compat="comfyui", weighting="comfyui")
    assert bundle.text.calls == 1
