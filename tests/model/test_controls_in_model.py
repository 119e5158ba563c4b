"""ControlNets inside the diffusion model."""

from __future__ import annotations

import torch

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.conditioning import Conditioning, Control
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNet, UNetConfig


def config(in_channels: int) -> UNetConfig:
    return UNetConfig(
        in_channels=in_channels,
        model_channels=32,
        channel_mult=(1, 2),
        attention_levels=(True, False),
        context_channels=8,
        num_heads=2,
    )


def test_a_plain_controlnet_steers_an_inpainting_model() -> None:
    torch.manual_seed(0)
    unet, control = UNet(config(9)).eval(), ControlNet(config(4)).eval()
    with torch.no_grad():
        for p in [*unet.parameters(), *control.parameters()]:
            p.add_(0.05 * torch.randn_like(p))
    model = DiffusionModel(unet, NoiseSchedule.scaled_linear(), Prediction.EPSILON)
    x, context = torch.randn(1, 4, 4, 6), torch.randn(1, 3, 8)
    with torch.no_grad():
        features = control.embed_hint(torch.rand(1, 3, 32, 48))
        mask = Conditioning(context=context, concat=torch.randn(1, 5, 4, 6))
        steered = Conditioning(context=context, concat=mask.concat, controls=(Control(control, features),))
        plain = model.denoise(x, 2.0, mask).x0
        result = model.denoise(x, 2.0, steered).x0
    assert result.isfinite().all()
    assert not torch.equal(result, plain)
