"""What ControlNets and T2I-Adapters add inside the U-Net, summed over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langevin.model.conditioning import Adapter, Control


def residuals(controls: Sequence[Control], z: Tensor, t: Tensor, context: Tensor | None) -> list[Tensor] | None:
    """What is added to the outputs of the U-Net's way down and, last, of its middle: None without controls.

    z: B C H W, the U-Net's own input; t: [B]; context: B L D. A ControlNet for the plain model steers an inpainting one
    too: it does not see the channels that come after its own.
    """
    found = [_residuals(control, z, t, context) for control in controls]
    # Pooled residuals have one place, the others as many as the level.
    return (
        [torch.stack(torch.broadcast_tensors(*level)).sum(0) for level in zip(*found, strict=True)] if found else None
    )


def features(adapters: Sequence[Adapter]) -> list[Tensor] | None:
    """What is added at the end of each level of the U-Net's way down, B C h w: None without adapters."""
    found = [[adapter.strength * level for level in adapter.features] for adapter in adapters]
    return [torch.stack(level).sum(0) for level in zip(*found, strict=True)] if found else None


def guess_weights(stages: int) -> list[float]:
    """Guess mode's weights for so many residuals, from 0.1 to 1, evenly in the logarithm."""
    return torch.logspace(-1, 0, stages, dtype=torch.float64).tolist()


def _residuals(control: Control, z: Tensor, t: Tensor, context: Tensor | None) -> list[Tensor]:
    rows = slice(None) if control.rows is None else control.rows
    seen = z[rows, : control.network.config.in_channels]
    told = None if context is None else context[rows]
    found: list[Tensor] = control.network(seen, t[rows], control.features, context=told)
    weighed = control.guess and not control.network.pooled
    weights = guess_weights(len(found)) if weighed else [1.0] * len(found)
    found = [control.strength * weight * residual for weight, residual in zip(weights, found, strict=True)]
    if control.rows is None:
        return found
    whole = [residual.new_zeros(len(z), *residual.shape[1:]) for residual in found]
    for everywhere, residual in zip(whole, found, strict=True):
        everywhere[rows] = residual
    return whole
