"""Local editing (Hertz et al. 2023, section 3.2): the picture is changed only where attention to some words is high."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.diffusion.core import Denoiser, Step
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers.common import intervals, toward
from langevin.networks.attention_control import LARGEST_SELF, watched

BEGINS = 0.2
"""Share of the run after which states are blended, as in the authors' program: before, attention is not yet settled."""


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """A sampler: Euler's method in which everything outside the words' places is, after each step, the picture's own
    state of that level. The last state there is the last of `states` bit for bit."""

    states: Sequence[Tensor]
    """An inversion's, 1 C h w, at the levels of the grid."""
    source: Sequence[int]
    """Where the words are in the old text: numbers of its tokens."""
    target: Sequence[int]
    """Where they are in the new one."""
    threshold: float = 0.3
    """Share of the highest attention from which on a place belongs to a word: k in the paper."""

    def __call__(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        """denoiser: one whose attention follows the source's (`following` with `always`)."""
        total: Tensor | float = 0.0
        for i, s, s1 in intervals(sigmas):
            with watched() as maps:
                x0 = denoiser(x, s).x0
            total = total + attention_to(maps, (self.source, self.target), x.shape[-2], x.shape[-1])
            x = toward(x0, x, s1 / s)
            if i + 1 > BEGINS * (len(sigmas) - 1):
                mask = places(total, self.threshold, x.shape[-2], x.shape[-1])
                x = torch.where(mask, x, self.states[i + 1].to(x))
            yield Step(i, s1, x, x0)


def attention_to(maps: Sequence[Tensor], words: tuple[Sequence[int], Sequence[int]], height: int, width: int) -> Tensor:
    """How much source and target attend to their words' tokens: 2 1 h w, at the resolution of the layers it is read of.

    maps: of each layer of attention to the text, B N L, image 0 the source; height, width: of the latent. Those are the
    finest layers of at most 256 pixels (16 x 16, as the authors do), where there are any, else the coarsest; what is
    not finite, from a call that was made again in float32, is left out.
    """
    halved = [(-(-height // 2**k), -(-width // 2**k)) for k in range(max(height, width).bit_length() + 1)]
    sizes = {h * w: (h, w) for h, w in halved}
    finite = [m for m in maps if bool(torch.isfinite(m).all())]
    counts = {m.shape[1] for m in finite}
    chosen = max((n for n in counts if n <= LARGEST_SELF), default=min(counts))
    mean = torch.stack([m[:2].float() for m in finite if m.shape[1] == chosen]).mean(0)  # 2 N L
    found = [one[:, list(tokens)].sum(-1).view(1, 1, *sizes[chosen]) for one, tokens in zip(mean, words, strict=True)]
    return torch.cat(found)


def places(attention: Tensor, threshold: float, height: int, width: int) -> Tensor:
    """Bool 1 1 H W: where source or target attend to the words, relative to where each does so most.

    attention: 2 1 h w, summed over the steps. The neighbours of a place belong to it (the authors' pooling).
    """
    near = F.interpolate(F.max_pool2d(attention, 3, stride=1, padding=1), (height, width), mode="nearest")
    most = near.amax((2, 3), keepdim=True)
    return ((near > threshold * most) & (most > 0)).any(0, keepdim=True)
