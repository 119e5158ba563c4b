"""The U-Net against diffusers' with the same random weights."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests.networks.network_pairs import copy_unet, difference, randomise

from langevin.networks.unet import UNet, UNetConfig

TOLERANCE = 1e-5

# The shape of each Stable Diffusion family at the smallest width: ours, and diffusers' words for it.
# Its attention_head_dim is the number of heads.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd1": ({"num_heads": 4}, {"attention_head_dim": 4}),
    "sd1_inpainting": ({"num_heads": 8, "in_channels": 9}, {"attention_head_dim": 8, "in_channels": 9}),
    "sd2": (
        {"num_heads": None, "head_channels": 16, "linear_projection": True},
        {"attention_head_dim": (2, 4, 4), "use_linear_projection": True},
    ),
    "sd2_depth": (
        {"num_heads": None, "head_channels": 8, "linear_projection": True, "in_channels": 5, "transformer_depth": 2},
        {
            "attention_head_dim": (4, 8, 8),
            "use_linear_projection": True,
            "in_channels": 5,
            "transformer_layers_per_block": 2,
        },
    ),
    "x4_upscaler": (
        {
            "num_heads": 8,
            "linear_projection": True,
            "in_channels": 7,
            "num_classes": 50,
            "attention_levels": (False, True, True),
            "cross_attention_only_levels": (True, True, False),
        },
        {
            "attention_head_dim": 8,
            "use_linear_projection": True,
            "in_channels": 7,
            "num_class_embeds": 50,
            "only_cross_attention": (True, True, False),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ),
}


def pair(family: str) -> tuple[UNet, Any]:
    mine, other = FAMILIES[family]
    ours = UNet(
        UNetConfig(
            **{
                "model_channels": 32,
                "channel_mult": (1, 2, 2),
                "attention_levels": (True, True, False),
                "context_channels": 24,
                **mine,
            }
        )
    ).eval()
    theirs = diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            **other,
        }
    ).eval()
    randomise(theirs)
    copy_unet(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree_at_square_oblong_and_odd_sizes(family: str) -> None:
    ours, theirs = pair(family)
    generator = torch.Generator().manual_seed(1)
    for height, width in [(16, 16), (8, 20), (13, 7), (6, 1)]:
        z = torch.randn(2, ours.config.in_channels, height, width, generator=generator)
        context = torch.randn(2, 11, 24, generator=generator)
        t = torch.tensor([3.25, 981.0])
        labels = None if ours.config.num_classes is None else torch.tensor([7, 42])
        with torch.no_grad():
            expected = theirs(z, t, context, class_labels=labels).sample
            result = ours(z, t, context=context, labels=labels)
        assert expected.std() > 0.1
        assert difference(result, expected) < TOLERANCE, (height, width)


def test_control_residuals_are_added_in_the_same_places() -> None:
    ours, theirs = pair("sd1")
    generator = torch.Generator().manual_seed(2)
    z, t = torch.randn(1, 4, 9, 12, generator=generator), torch.tensor([500.0])
    context = torch.randn(1, 5, 24, generator=generator)
    with torch.no_grad():
        shapes = []
        h, emb = z, ours.time_embed(t)
        for stage in ours.input_blocks:
            h = stage(h, emb, context)
            shapes.append(h.shape)
        controls = [torch.randn(shape, generator=generator) for shape in [*shapes, h.shape]]
        expected = theirs(
            z, t, context, down_block_additional_residuals=controls[:-1], mid_block_additional_residual=controls[-1]
        ).sample
        result = ours(z, t, context=context, controls=controls)
        without = ours(z, t, context=context)
    assert difference(result, expected) < TOLERANCE
    assert difference(result, without) > 0.1


@pytest.mark.parametrize("scale_shift_norm", [False, True])
def test_pixel_network_agrees(scale_shift_norm: bool) -> None:
    """Improved DDPM: class labels, learned variance (2C outputs), attention without context at the lower levels."""
    ours = UNet(
        UNetConfig(
            in_channels=3,
            out_channels=6,
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_levels=(False, True, True),
            num_heads=None,
            head_channels=16,
            context_channels=None,
            num_classes=10,
            scale_shift_norm=scale_shift_norm,
        )
    ).eval()
    theirs = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=16,
        attn_norm_num_groups=32,
        num_class_embeds=10,
        resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
    ).eval()
    randomise(theirs)
    copy_unet(ours, theirs)
    generator = torch.Generator().manual_seed(3)
    for height, width in [(16, 16), (8, 12)]:
        z = torch.randn(2, 3, height, width, generator=generator)
        t, labels = torch.tensor([0.0, 731.5]), torch.tensor([9, 0])
        with torch.no_grad():
            expected = theirs(z, t, class_labels=labels).sample
            result = ours(z, t, labels=labels)
        assert result.shape == (2, 6, height, width)
        assert expected.std() > 0.1
        assert difference(result, expected) < TOLERANCE


@pytest.mark.slow
def test_full_width_agrees() -> None:
    """Stable Diffusion 1.x at its real width (7 GB for the two): heads of 40, 80 and 160 channels."""
    theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768).eval()
    randomise(theirs)
    with torch.device("meta"):
        ours = UNet(UNetConfig())
    ours = ours.to_empty(device="cpu").eval()
    copy_unet(ours, theirs)
    z, t, context = torch.randn(1, 4, 9, 16), torch.tensor([500.5]), torch.randn(1, 77, 768)
    with torch.no_grad():
        expected = theirs(z, t, context).sample
        assert expected.std() > 0.1
        assert difference(ours(z, t, context=context), expected) < TOLERANCE
