"""DiffEdit (Couairon et al. 2023): where two texts disagree, and a walk that changes a picture only there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Step
from langevin.diffusion.samplers.common import intervals, toward

CLIPPED_AT = 3.0
"""Times the mean: larger differences count as much."""


def disagreement(
    first: Denoiser, second: Denoiser, clean: Tensor, sigma: float, noises: Sequence[Tensor], *, threshold: float = 0.5
) -> Tensor:
    """The mask of Couairon et al. 2023, section 3.2, step 1: bool 1 1 H W, true where the two denoisers disagree.

    clean: 1 C H W. It is noised to `sigma` with each of `noises`; the absolute difference of the estimates is averaged
    over noises and channels. Extreme values are clipped at three times the mean, the rest is scaled to [0, 1] and
    compared with `threshold`. Where nothing differs, the mask is empty. (The estimates of x0 differ by a constant times
    those of the noise; scaling takes it out.)
    """
    total = torch.zeros_like(clean[:, :1])
    for noise in noises:
        x = clean + sigma * noise
        total = total + (first(x, sigma).x0 - second(x, sigma).x0).abs().mean(1, keepdim=True)
    top = CLIPPED_AT * total.mean()
    return total.clamp(max=top) > threshold * top


def changed_where(
    mask: Tensor, states: Sequence[Tensor], denoiser: Denoiser, x: Tensor, sigmas: Tensor
) -> Iterator[Step]:
    """Euler's method in which everything outside `mask` is, after each step, the picture's own state of that level
    (Couairon et al. 2023, section 3.2, step 3).

    mask: bool, broadcast to x. states: an inversion's, at the grid's levels. The last state outside the mask is the
    last of `states` bit for bit.
    """
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        x = torch.where(mask, toward(x0, x, s1 / s), states[i + 1].to(x))
        yield Step(i, s1, x, x0)
