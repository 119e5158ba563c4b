"""Does a U-Net predict noise or v? Asked of the network itself, where no file says."""

from __future__ import annotations

import torch
from torch import nn

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import CheckpointError
from langevin.model.text import PromptEncoder

_ABARS = (0.7, 0.5, 0.3)
"""Middle noise levels."""
_NOISE_AT_THE_END = 0.75
_V_AT_THE_END = 0.35
_LEAST_FALL = 0.1


@torch.inference_mode()
def probe_prediction(
    network: nn.Module, schedule: NoiseSchedule, text: PromptEncoder | None, *, label: str, size: int = 32
) -> Prediction:
    """EPSILON or V by how much of the noise is found again in the output.

    The input is z = sqrt(1 - abar) eps, a flat picture under noise. Let k = <F, eps> / <eps, eps>. The best estimate of
    the noise, and with it k of a noise-predicting network, comes ever closer to 1 as abar goes to 0, whatever the data:
    there z is nothing but noise. For v = sqrt(abar) eps - sqrt(1 - abar) x0 the noise enters with sqrt(abar), so that k
    falls towards 0; but at middle levels a network that has learned anything of pictures finds much of it. Hence:

    - k at the last timestep at least 0.75: noise;
    - at most 0.35 there, and at least 0.1 more at a middle level: v;
    - anything else (an untrained network, for one) is no evidence, and a CheckpointError asks for the answer.

    network: called as `UNet` is, with a latent of `size` x `size` and the empty prompt. About four network calls.
    """
    parameter = next(network.parameters())
    config = network.config
    generator = torch.Generator("cpu").manual_seed(0)
    eps = torch.randn(1, config.in_channels, size, size, generator=generator)  # type: ignore[union-attr, arg-type]
    context = None
    if config.context_channels is not None:  # type: ignore[union-attr]
        context = _empty_context(text, int(config.context_channels), parameter)  # type: ignore[union-attr, arg-type]
    slopes = []
    for t in [*(int((schedule.abar - abar).abs().argmin()) for abar in _ABARS), len(schedule) - 1]:
        z = torch.sqrt(1 - schedule.abar[t]).float() * eps
        output = network(
            z.to(parameter), torch.tensor([float(t)], device=parameter.device), context=context, labels=None
        )
        found = output.to("cpu", torch.float64)[:, : eps.shape[1]]
        slopes.append(float((found * eps).sum() / (eps.double() * eps).sum()))
    *middle, last = slopes
    if last >= _NOISE_AT_THE_END:
        return Prediction.EPSILON
    if abs(last) <= _V_AT_THE_END and max(middle) >= last + _LEAST_FALL:
        return Prediction.V
    raise CheckpointError(
        f"{label}: nothing says whether this model predicts noise or v, and probing it gave no answer "
        f"(noise found again: {last:.2f} of 1): pass prediction='epsilon' or 'v' (--prediction), or its YAML as config="
    )


def _empty_context(text: PromptEncoder | None, width: int, like: torch.Tensor) -> torch.Tensor:
    """The states of the empty prompt, 1 L D; zeros where there is no text encoder."""
    if text is None:
        return torch.zeros(1, 77, width, device=like.device, dtype=like.dtype)
    return text.states([""]).to(like)
