"""The U-Net by itself: names, sizes, initialisation, precision, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.networks.network_pairs import difference, randomise
from torch import Tensor

from langevin.networks import attention
from langevin.networks.attention import AttentionBlock
from langevin.networks.blocks import ResBlock
from langevin.networks.embeddings import timestep_embedding
from langevin.networks.transformer import SpatialTransformer
from langevin.networks.unet import UNet, UNetConfig

SD2: dict[str, Any] = {
    "num_heads": None,
    "head_channels": 64,
    "context_channels": 1024,
    "linear_projection": True,
}
UPSCALER = UNetConfig(
    in_channels=7,
    model_channels=256,
    channel_mult=(1, 2, 2, 4),
    attention_levels=(False, True, True, True),
    context_channels=1024,
    linear_projection=True,
    cross_attention_only_levels=(True, True, True, False),
    num_classes=1000,
)
TINY = UNetConfig(
    model_channels=32, channel_mult=(1, 2), attention_levels=(True, True), context_channels=24, num_heads=4
)


def tiny(seed: int = 0, **changes: Any) -> UNet:
    unet = UNet(UNetConfig(**{**TINY.__dict__, **changes})).eval()
    randomise(unet, seed)
    return unet


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (UNetConfig(), 859_520_964, 686),
        (UNetConfig(in_channels=9), 859_535_364, 686),
        (UNetConfig(**SD2), 865_910_724, 686),
        (UNetConfig(in_channels=5, **SD2), 865_913_604, 686),
        (UNetConfig(in_channels=9, **SD2), 865_925_124, 686),
        (UPSCALER, 473_398_020, 687),
    ],
    ids=["sd1", "sd1-inpainting", "sd2", "sd2-depth", "sd2-inpainting", "x4-upscaler"],
)
def test_parameter_totals_of_stable_diffusion(config: UNetConfig, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        unet = UNet(config)
    assert sum(p.numel() for p in unet.parameters()) == parameters
    assert len(unet.state_dict()) == tensors


def test_names_are_those_of_the_original_file() -> None:
    with torch.device("meta"):
        sd1, upscaler = UNet(UNetConfig()).state_dict(), UNet(UPSCALER).state_dict()
    assert sd1["input_blocks.1.1.proj_in.weight"].shape == (320, 320, 1, 1)
    assert sd1["input_blocks.3.0.op.weight"].shape == (320, 320, 3, 3)
    assert sd1["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape == (1280, 768)
    assert sd1["middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"].shape == (10240, 1280)
    # The upsampling convolution stands after the attention, where there is one.
    assert {k for k in sd1 if k.startswith("output_blocks.2.")} >= {"output_blocks.2.1.conv.weight"}
    assert {k for k in sd1 if k.startswith("output_blocks.8.")} >= {"output_blocks.8.2.conv.weight"}
    assert "output_blocks.2.2.conv.weight" in upscaler
    assert upscaler["label_emb.weight"].shape == (1000, 1024)
    assert upscaler["input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight"].shape == (512, 1024)
    assert upscaler["middle_block.1.transformer_blocks.0.attn1.to_k.weight"].shape == (1024, 1024)


def test_timestep_embedding_is_the_published_formula() -> None:
    t = torch.tensor([0.0, 0.5, 1.0, 998.75])
    result = timestep_embedding(t, 64)
    for i, value in enumerate(t.tolist()):
        for j in range(32):
            angle = value * 10000 ** (-j / 32)
            assert result[i, j] == pytest.approx(math.cos(angle), abs=1e-4)  # float32 angles near 1000
            assert result[i, 32 + j] == pytest.approx(math.sin(angle), abs=1e-4)


def test_new_network_gives_zero() -> None:
    """Zero-initialised output: training begins at the mean of the target."""
    unet = UNet(TINY)
    assert not unet(torch.randn(1, 4, 8, 8), torch.tensor([5.0]), context=torch.randn(1, 3, 24)).any()


def test_new_residual_branches_are_nothing() -> None:
    x, emb, context = torch.randn(2, 64, 4, 5), torch.randn(2, 16), torch.randn(2, 3, 24)
    assert torch.equal(ResBlock(64, 64, 16, dropout=0.0, scale_shift_norm=False)(x, emb), x)
    assert torch.equal(ResBlock(64, 64, 16, dropout=0.0, scale_shift_norm=True)(x, emb), x)
    assert torch.equal(AttentionBlock(64, heads=2)(x), x)
    for linear in (False, True):
        assert torch.equal(SpatialTransformer(64, 24, heads=2, linear=linear)(x, context), x)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (7, 5), (8, 8)])
def test_any_size_comes_back(size: tuple[int, int]) -> None:
    # 64 channels: a GroupNorm of one channel and one pixel a group has nothing to normalise.
    unet = tiny(model_channels=64, channel_mult=(1, 1, 2, 2), attention_levels=(False, True, True, False))
    with torch.no_grad():
        out = unet(torch.randn(1, 4, *size), torch.tensor([5.0]), context=torch.randn(1, 3, 24))
    assert out.shape == (1, 4, *size)
    assert out.isfinite().all()


def test_each_image_of_a_batch_has_its_own_time_and_context() -> None:
    unet = tiny()
    z, t, context = torch.randn(3, 4, 6, 6), torch.tensor([0.0, 400.5, 999.0]), torch.randn(3, 5, 24)
    with torch.no_grad():
        together = unet(z, t, context=context)
        for i in range(3):
            alone = unet(z[i : i + 1], t[i : i + 1], context=context[i : i + 1])
            assert difference(together[i : i + 1], alone) < 1e-5
        shuffled = unet(z, t.flip(0), context=context)
    assert difference(together, shuffled) > 1e-2


def test_bfloat16_is_near_float32_and_tells_neighbouring_times_apart() -> None:
    unet = tiny()
    z, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    half = tiny().bfloat16()
    with torch.no_grad():
        exact = unet(z, torch.tensor([997.0, 999.0]), context=context)
        result = half(z.bfloat16(), torch.tensor([997.0, 999.0]), context=context.bfloat16())
        equal_inputs = half(z[:1].bfloat16().expand(2, -1, -1, -1), torch.tensor([997.0, 999.0]),
                            context=context[:1].bfloat16().expand(2, -1, -1))  # fmt: skip
    assert result.dtype == torch.bfloat16
    assert (result.float() - exact).norm() / exact.norm() < 0.05
    assert not torch.equal(equal_inputs[0], equal_inputs[1])


def test_channels_last_gives_the_same() -> None:
    unet = tiny()
    z, t, context = torch.randn(1, 4, 9, 8), torch.tensor([500.0]), torch.randn(1, 5, 24)
    with torch.no_grad():
        expected = unet(z, t, context=context)
        unet.to(memory_format=torch.channels_last)
        assert difference(unet(z.to(memory_format=torch.channels_last), t, context=context), expected) < 1e-5


@pytest.mark.parametrize("context_channels", [24, None])
@pytest.mark.parametrize("upcast", [False, True])
def test_upcast_attention_computes_in_float32(
    context_channels: int | None, upcast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    kernel = attention._kernel

    def spy(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        seen.extend([q.dtype, k.dtype, v.dtype])
        return kernel(q, k, v, causal)

    monkeypatch.setattr(attention, "_kernel", spy)
    unet = tiny(context_channels=context_channels, upcast_attention=upcast).bfloat16()
    context = None if context_channels is None else torch.randn(1, 3, 24).bfloat16()
    out = unet(torch.randn(1, 4, 4, 4).bfloat16(), torch.tensor([5.0]), context=context)
    assert out.dtype == torch.bfloat16
    assert set(seen) == {torch.float32 if upcast else torch.bfloat16}


def test_upcast_attention_holds_under_autocast() -> None:
    q, k, v = (torch.randn(1, 2, 7, 16) for _ in range(3))
    expected = attention.attend(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.attend(q, k, v, upcast=True), expected)
        assert not torch.equal(attention.attend(q, k, v).float(), expected)


def test_dropout_acts_in_training_only() -> None:
    unet = tiny(dropout=0.5)
    z, t, context = torch.randn(1, 4, 4, 4), torch.tensor([5.0]), torch.randn(1, 3, 24)
    with torch.no_grad():
        assert torch.equal(unet(z, t, context=context), unet(z, t, context=context))
        unet.train()
        assert not torch.equal(unet(z, t, context=context), unet(z, t, context=context))


@pytest.mark.parametrize("context_channels", [24, None])
def test_learns_from_scratch(context_channels: int | None) -> None:
    """Every parameter takes part once the zero-initialised layers have moved, and a fixed target is learned."""
    unet = UNet(UNetConfig(**{**TINY.__dict__, "context_channels": context_channels, "num_res_blocks": 1}))
    z, t, target = torch.randn(4, 4, 8, 8), torch.tensor([1.0, 300.0, 600.0, 999.0]), torch.randn(4, 4, 8, 8)
    context = None if context_channels is None else torch.randn(4, 5, 24)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = (unet(z, t, context=context) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    still = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_wrong_inputs_are_refused() -> None:
    z, t, context = torch.randn(1, 4, 4, 4), torch.tensor([5.0]), torch.randn(1, 3, 24)
    unet = tiny()
    with pytest.raises(ValueError, match="context of width None: this network takes 24"):
        unet(z, t)
    with pytest.raises(ValueError, match="context of width 32: this network takes 24"):
        unet(z, t, context=torch.randn(1, 3, 32))
    with pytest.raises(ValueError, match="takes None"):
        tiny(context_channels=None)(z, t, context=context)
    with pytest.raises(ValueError, match="labels given"):
        unet(z, t, context=context, labels=torch.tensor([1]))
    with pytest.raises(ValueError, match="labels missing"):
        tiny(num_classes=3)(z, t, context=context)
    with pytest.raises(ValueError, match="2 controls: this network takes 7"):
        unet(z, t, context=context, controls=[z, z])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 8, "head_channels": 8}, "exactly one"),
        ({"num_heads": None}, "exactly one"),
        ({"attention_levels": (True,)}, "attention_levels has 1 entries, channel_mult has 2"),
        ({"cross_attention_only_levels": (True,)}, "cross_attention_only_levels has 1 entries"),
        ({"cross_attention_only_levels": (True, False), "context_channels": None}, "needs context_channels"),
        ({"model_channels": 48}, "a level of 48 channels: must be a multiple of 32"),
        ({"num_heads": 5}, "32 channels cannot be divided into heads"),
        ({"num_heads": None, "head_channels": 24}, "32 channels cannot be divided into heads"),
        ({"channel_mult": ()}, "channel_mult is empty"),
        ({"num_heads": None, "head_channels": 0}, "head_channels 0: must be at least 1"),
        ({"num_res_blocks": 0}, "num_res_blocks 0: must be at least 1"),
        ({"in_channels": 0}, "in_channels 0: must be at least 1"),
        ({"transformer_depth": -1}, "transformer_depth -1: must be at least 1"),
        ({"dropout": 1.0}, "dropout 1.0: must be"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{**TINY.__dict__, **changes})
