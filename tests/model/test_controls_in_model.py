"""ControlNets inside the diffusion model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from langevin.diffusion.grids import make_grid
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS, final
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.conditioning import Conditioning, Control
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.guided import guided_model
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


@pytest.mark.parametrize("steps", [1, 5])
def test_the_hint_is_embedded_once_whatever_the_steps(steps: int) -> None:
    """The hint encoder is counted against the rest of the ControlNet, which runs at every call of the denoiser."""
    unet, control = UNet(config(4)).eval(), ControlNet(config(4)).eval()
    counts = {"hint": 0, "control": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[name] += 1

        return hook

    control.input_hint_block.register_forward_hook(count("hint"))
    control.middle_block.register_forward_hook(count("control"))
    model = DiffusionModel(unet, NoiseSchedule.scaled_linear(), Prediction.EPSILON)
    sigmas = make_grid("trailing", model.schedule, steps)
    noise = Noise([0], (4, 4, 6))
    with torch.no_grad():
        features = control.embed_hint(torch.rand(1, 3, 32, 48))
        cond = Conditioning(context=torch.randn(1, 3, 8), controls=(Control(control, features),))
        uncond = Conditioning(context=torch.randn(1, 3, 8), controls=cond.controls)
        denoiser = guided_model(model, cond, uncond, 3.0)
        final(SAMPLERS["heun"].run(denoiser, model.schedule.prior(noise.initial()), sigmas, noise))
    assert counts == {"hint": 1, "control": 2 * steps - 1}
