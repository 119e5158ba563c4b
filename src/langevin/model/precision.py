"""The float32 twin of a half-precision network: what a failed call is run again with."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from langevin.diffusion.core import Estimate
from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.controlnet import ControlNet

M = TypeVar("M", bound=nn.Module)


def float32_copy(module: M) -> M:
    """A copy of `module` with its floating-point weights in float32; half-precision copies are not made on the way.

    The original is not touched, so that another thread may go on using it.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_float32(parameter.detach()), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = _float32(buffer)
    return copy.deepcopy(module, memo)


def float32_model(model: DiffusionModel) -> DiffusionModel:
    return replace(model, network=float32_copy(model.network))


def float32_autoencoder(autoencoder: Autoencoder) -> Autoencoder:
    return replace(autoencoder, network=float32_copy(autoencoder.network))


def float32_conditioning(cond: Conditioning, copies: dict[int, ControlNet] | None = None) -> Conditioning:
    """The conditioning for a float32 network. copies: of the ControlNets that were met already, by identity; several
    conditionings share them."""
    copies = {} if copies is None else copies

    def copied(network: ControlNet) -> ControlNet:
        if id(network) not in copies:
            copies[id(network)] = float32_copy(network)
        return copies[id(network)]

    def widen(value: Tensor | None) -> Tensor | None:
        return None if value is None else _float32(value)

    return replace(
        cond,
        context=widen(cond.context),
        concat=widen(cond.concat),
        images=widen(cond.images),
        controls=tuple(replace(c, network=copied(c.network), features=_float32(c.features)) for c in cond.controls),
        adapters=tuple(replace(a, features=tuple(_float32(f) for f in a.features)) for a in cond.adapters),
    )


def is_finite(value: Tensor | Estimate) -> bool:
    """Whether no element is NaN or infinity. An estimate: of x0 and of the variance, where there is one."""
    if isinstance(value, Estimate):
        return is_finite(value.x0) and (value.variance_fraction is None or is_finite(value.variance_fraction))
    return bool(torch.isfinite(value).all())


def _float32(value: Tensor) -> Tensor:
    return value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
