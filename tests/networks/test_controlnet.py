"""ControlNet against diffusers', and the properties that its training rests on."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests.networks.network_pairs import copy_controlnet, difference, randomise

from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNet, UNetConfig

TINY = UNetConfig(
    model_channels=32, channel_mult=(1, 2), attention_levels=(True, False), context_channels=24, num_heads=4
)


@pytest.mark.parametrize("linear", [False, True])
def test_residuals_agree(linear: bool) -> None:
    heads: dict[str, Any] = {"num_heads": None, "head_channels": 8} if linear else {"num_heads": 4}
    config = UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 2),
        attention_levels=(True, True, False),
        context_channels=24,
        linear_projection=linear,
        **heads,
    )
    ours = ControlNet(config).eval()
    theirs = diffusers.ControlNetModel(
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(4, 8, 8) if linear else 4,
        use_linear_projection=linear,
    ).eval()
    randomise(theirs)
    copy_controlnet(ours, theirs)
    generator = torch.Generator().manual_seed(1)
    for height, width in [(8, 8), (5, 7)]:
        z = torch.randn(2, 4, height, width, generator=generator)
        hint = torch.rand(2, 3, 8 * height, 8 * width, generator=generator)
        t, context = torch.tensor([12.5, 900.0]), torch.randn(2, 6, 24, generator=generator)
        with torch.no_grad():
            down, middle = theirs(z, t, context, hint, return_dict=False)
            result = ours(z, t, ours.embed_hint(hint), context=context)
        assert len(result) == len(ours.input_blocks) + 1
        for mine, other in zip(result, [*down, middle], strict=True):
            assert other.std() > 0.1
            assert difference(mine, other) < 1e-5


def test_copy_of_a_unet_changes_nothing_at_first() -> None:
    unet = UNet(TINY).eval()
    randomise(unet)
    control = ControlNet.from_unet(unet)
    z, t, context = torch.randn(1, 4, 6, 5), torch.tensor([400.0]), torch.randn(1, 7, 24)
    with torch.no_grad():
        features = control.embed_hint(torch.rand(1, 3, 48, 40))
        assert not features.any()
        residuals = control(z, t, features, context=context)
        assert all(not r.any() for r in residuals)
        assert torch.equal(unet(z, t, context=context, controls=residuals), unet(z, t, context=context))
    theirs = unet.state_dict()
    copied = {
        name for name, weight in control.state_dict().items() if name in theirs and torch.equal(weight, theirs[name])
    }
    assert copied == {name for name in theirs if not name.startswith(("output_blocks.", "out."))}


def test_copy_shares_no_memory_with_the_unet() -> None:
    unet = UNet(TINY)
    control = ControlNet.from_unet(unet)
    storages = {p.data_ptr() for p in unet.parameters()}
    assert not any(p.data_ptr() in storages for p in control.parameters())


def test_copy_keeps_dtype_and_drops_labels() -> None:
    unet = UNet(UNetConfig(model_channels=32, channel_mult=(1,), attention_levels=(False,), num_classes=3)).bfloat16()
    control = ControlNet.from_unet(unet)
    assert {p.dtype for p in control.parameters()} == {torch.bfloat16}
    assert not any("label" in name for name in control.state_dict())


def test_training_moves_the_zero_convolutions_first() -> None:
    """At first nothing passes them backwards either (Zhang et al. 2023, section 3.1)."""
    control = ControlNet.from_unet(UNet(TINY))
    z, t, context = torch.randn(1, 4, 4, 4), torch.tensor([10.0]), torch.randn(1, 3, 24)
    residuals = control(z, t, control.embed_hint(torch.rand(1, 3, 32, 32)), context=context)
    sum((r - 1).square().sum() for r in residuals).backward()  # type: ignore[union-attr]
    for name, p in control.named_parameters():
        moved = p.grad is not None and bool(p.grad.any())
        assert moved == name.startswith(("zero_convs", "middle_block_out")), name


def test_hint_of_the_wrong_size_is_refused() -> None:
    control = ControlNet(TINY)
    features = control.embed_hint(torch.rand(1, 3, 32, 32))
    assert features.shape == (1, 32, 4, 4)
    with pytest.raises(ValueError, match="8 times the latent"):
        control(torch.randn(1, 4, 5, 4), torch.tensor([1.0]), features, context=torch.randn(1, 3, 24))


def test_parameter_total_of_stable_diffusion() -> None:
    with torch.device("meta"):
        control = ControlNet(UNetConfig())
    assert sum(p.numel() for p in control.parameters()) == 361_279_120
    assert len(control.state_dict()) == 340
