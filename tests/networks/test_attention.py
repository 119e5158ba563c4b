"""The attention kernel against its formula, and that there is one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.networks.network_pairs import difference

import langevin
from langevin.networks import attention
from langevin.networks.attention import AttentionBlock, attend, merge_heads, split_heads


def test_attention_is_the_formula() -> None:
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    expected = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), -1) @ v
    assert difference(attend(q, k, v), expected) < 1e-12


def test_causal_attention_sees_the_past_only() -> None:
    q, k, v = (torch.randn(2, 3, 6, 8, dtype=torch.float64) for _ in range(3))
    logits = q @ k.transpose(-1, -2) / math.sqrt(8)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected = torch.softmax(logits.masked_fill(future, -math.inf), -1) @ v
    assert difference(attend(q, k, v, causal=True), expected) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_training_in_bfloat16_has_the_gradients_of_the_formula(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU torch's kernel is not used then: its backward pass is slow for short sequences."""
    exact = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (6, 7, 7)]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    weight = torch.randn(2, 3, 6, 8)
    (attend(*exact, causal=causal) * weight).sum().backward()
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("torch's kernel"))
    (attend(*rounded, causal=causal) * weight).sum().backward()
    for a, b in zip(exact, rounded, strict=True):
        assert a.grad is not None and b.grad is not None
        assert difference(b.grad.float(), a.grad) < 0.05 * float(a.grad.abs().max())
    monkeypatch.undo()
    with torch.no_grad():
        used = attend(*rounded, causal=causal)
        assert torch.equal(used, F.scaled_dot_product_attention(*rounded, is_causal=causal))


def test_long_sequences_are_trained_without_keeping_the_scores() -> None:
    long = torch.randn(1, 1, 512, 8, dtype=torch.bfloat16, requires_grad=True)
    assert "ScaledDotProduct" in type(attend(long, long, long).grad_fn).__name__
    short = long[:, :, :256]
    assert "ScaledDotProduct" not in type(attend(short, short, short).grad_fn).__name__


def test_heads_are_consecutive_channels() -> None:
    x = torch.arange(2 * 3 * 8).view(2, 3, 8)
    heads = split_heads(x, 2)
    assert heads.shape == (2, 2, 3, 4)
    assert torch.equal(heads[:, 1], x[:, :, 4:])
    assert torch.equal(merge_heads(heads), x)


def test_pixel_attention_takes_queries_keys_and_values_head_by_head() -> None:
    """The layout of improved DDPM's weights."""
    block = AttentionBlock(64, heads=4).double()
    torch.nn.init.normal_(block.proj_out.weight, std=0.2)
    x = torch.randn(1, 64, 3, 5, dtype=torch.float64)
    rows = block.qkv(block.norm(x).view(1, 64, 15))[0]  # 3C N
    heads = []
    for part in rows.chunk(4):  # 3d N
        q, k, v = part.chunk(3)  # d N
        heads.append(v @ torch.softmax(q.T @ k / math.sqrt(16), 1).T)
    expected = x + block.proj_out(torch.cat(heads)[None]).view(1, 64, 3, 5)
    assert difference(block(x), expected) < 1e-12


def test_there_is_one_call_site() -> None:
    root = Path(langevin.__path__[0])
    calls = [
        path for path in root.rglob("*.py") for _ in range(path.read_text().count("scaled_dot_product_attention("))
    ]
    assert calls == [root / "networks" / "attention.py"]
