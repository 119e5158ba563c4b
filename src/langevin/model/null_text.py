"""Null-text optimisation (Mokady et al. 2023): the text of guidance's other half, fitted level by level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser
from langevin.diffusion.guidance import combine, guided, switch_at
from langevin.diffusion.samplers.common import intervals, toward
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.guided import conditioned, repeated


class Fitted(NamedTuple):
    """One level done."""

    context: Tensor
    """The unconditional text states to use there, float32 1 L D."""
    loss: float
    """Mean squared distance of the step's end from the pivot, in variance-preserving units."""


def null_text(
    model: DiffusionModel,
    cond: Conditioning,
    uncond: Conditioning,
    pivots: Sequence[Tensor],
    sigmas: Tensor,
    scale: float,
    *,
    iterations: int = 10,
    rate: float = 0.1,
    tolerance: float = 1e-5,
) -> Iterator[Fitted]:
    """Unconditional contexts with which Euler's steps under guidance `scale` pass through `pivots` (Mokady et al. 2023,
    algorithm 1).

    pivots: the states of an inversion without guidance, at the grid's levels, 1 C h w each. Each level starts from the
    context of the one before; Adam takes at most `iterations` steps, fewer where the loss falls below `tolerance`.
    rate: its step size at the first level, half of it at the last. The paper's is 0.01, for 50 steps of Stable
    Diffusion; with fewer there is more to make up for. The best context met is kept in any case.
    """
    x, context = pivots[0], uncond.context
    if context is None:
        raise ValueError("null-text optimisation needs a model with text")
    context = context.detach().float()
    steps = intervals(sigmas)
    for i, s, s1 in steps:
        ahead = _ahead(model, cond, uncond, x, s, s1, scale)
        context, loss = _fitted(
            ahead, context, pivots[i + 1], 1 / (1 + s1 * s1), iterations, rate * (1 - i / (2 * len(steps))), tolerance
        )
        with torch.no_grad():
            x = ahead(context)
        yield Fitted(context, loss)


def _ahead(
    model: DiffusionModel, cond: Conditioning, uncond: Conditioning, x: Tensor, s: float, s1: float, scale: float
) -> Callable[[Tensor], Tensor]:
    """Where Euler's guided step from x leads, by the unconditional context."""
    with torch.no_grad():
        with_text = model.denoise(x, s, repeated(cond, len(x))).x0

    def ahead(context: Tensor) -> Tensor:
        without = model.denoise(x, s, repeated(told(uncond, context, model.dtype), len(x))).x0
        return toward(combine(with_text, without, scale), x, s1 / s)

    return ahead


def _fitted(
    ahead: Callable[[Tensor], Tensor],
    context: Tensor,
    pivot: Tensor,
    weight: float,
    iterations: int,
    rate: float,
    tolerance: float,
) -> tuple[Tensor, float]:
    """The best context met on the way, the first one included, and its loss."""
    with torch.inference_mode(False), torch.enable_grad():
        moving = context.clone().requires_grad_()
        optimiser = torch.optim.Adam([moving], lr=rate)
        best, least = context, math.inf
        for i in range(iterations + 1):
            loss = weight * (ahead(moving) - pivot).square().mean()
            if (missed := float(loss.detach())) < least:
                best, least = moving.detach().clone(), missed
            if i == iterations or least < tolerance:
                break
            (moving.grad,) = torch.autograd.grad(loss, moving)
            optimiser.step()
    return best, least


def told(uncond: Conditioning, context: Tensor, dtype: torch.dtype) -> Conditioning:
    """`uncond` with another context, in the network's precision."""
    return replace(uncond, context=context.to(dtype))


def by_level(model: DiffusionModel, uncond: Conditioning, contexts: Sequence[Tensor], sigmas: Tensor) -> Denoiser:
    """D of the unconditional text that belongs to each level of the grid."""
    first, *later = [conditioned(model, told(uncond, context, model.dtype)) for context in contexts]
    return switch_at(first, *zip(sigmas[1:-1].tolist(), later, strict=True))


def null_text_guided(
    model: DiffusionModel,
    cond: Denoiser,
    uncond: Conditioning,
    contexts: Sequence[Tensor],
    sigmas: Tensor,
    scale: float,
) -> Denoiser:
    """Guidance of `cond` with the fitted contexts in the place of the empty text."""
    return guided(cond, by_level(model, uncond, contexts, sigmas), scale)
