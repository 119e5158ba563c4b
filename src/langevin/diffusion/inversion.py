"""Sampling turned round: from a picture to the noise that it would have come from, and back.

Each method is a pair of generators, `encode(denoiser, x, sigmas)` and `decode(denoiser, x, sigmas)`, on one and the
same descending grid that ends above 0: encode walks it upwards from its last level, decode downwards from its first.
They draw no noise. As with the samplers, memory is in local variables and the denoiser hides everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate, Step
from langevin.diffusion.samplers.common import intervals, toward

Walk = Callable[[Denoiser, Tensor, Tensor], Iterator[Step]]
"""walk(denoiser, x, sigmas): x is B C H W, or B 2C H W for methods of two states; a Step per interval."""


def closed(sigmas: Tensor, sigma_min: float) -> Tensor:
    """A grid that can be walked both ways: where it ends at 0, `sigma_min` stands in the place of the 0.

    No step leads upwards from 0: there is no slope `(x - D) / sigma`. A clean picture is the state at `sigma_min` whose
    noise is zero. Where the grid's last level above 0 is at or below `sigma_min` already, that one is the end.
    """
    levels = sigmas[sigmas > 0]
    if sigmas[-1] > 0 or levels[-1] <= sigma_min * (1 + 1e-6):
        return levels
    return torch.cat([levels, levels.new_tensor([sigma_min])])


# -- Euler, that is DDIM ------------------------------------------------------------------------------------------


def ddim_encode(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """DDIM inversion (Song et al. 2021, section 4.3): Euler's method on the grid turned round. One call a step.

    Each step takes the slope where it starts, the way back takes it where this one ends: the two undo each other only
    as the steps shrink, with an error of first order.
    """
    yield from _euler(denoiser, x, sigmas.flip(0))


def ddim_decode(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """DDIM with eta = 0, that is Euler's method (Song et al. 2021, equation 12)."""
    yield from _euler(denoiser, x, sigmas)


def _euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        x = toward(x0, x, s1 / s)
        yield Step(i, s1, x, x0)


_MEMORY = 3
"""Earlier iterates that the acceleration looks at."""


def fixed_point_encode(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, iterations: int = 30, tolerance: float = 1e-5
) -> Iterator[Step]:
    """The state from which Euler's step leads to x, found by iteration: the exact inverse of `ddim_decode` (Pan et al.
    2023, AIDI; Meiri et al. 2023). 1 to `iterations` calls a step.

    With s above s1 it solves `y = x + (s - s1) (y - D(y, s)) / s` for y. The step from y misses x by just what the two
    sides differ by, and this is brought below `tolerance` times the largest |y|, or as low as `iterations` calls bring
    it. There is one such y wherever the step is injective: for D = E[x0 | x], which never falls as x rises, always; for
    strong guidance with few steps not.
    """
    for i, s1, s in intervals(sigmas.flip(0)):
        x, x0 = _solved(denoiser, x, s1, s, iterations, tolerance)
        yield Step(i, s, x, x0)


def _solved(
    denoiser: Denoiser, x: Tensor, s1: float, s: float, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """(y at level s, D(y)), the best of the iterates; Anderson acceleration."""
    y, best, least = x, (x, x), math.inf
    residuals: list[Tensor] = []
    images: list[Tensor] = []  # of the map: residual + iterate
    for _ in range(iterations):
        x0 = denoiser(y, s).x0
        image = x + (1 - s1 / s) * (y - x0)
        residual = image - y
        size = float(residual.abs().max())
        if size < least:
            best, least = (y, x0), size
        if size <= tolerance * float(y.abs().max()) or not math.isfinite(size):
            break
        residuals, images = [*residuals[-_MEMORY:], residual], [*images[-_MEMORY:], image]
        y = _accelerated(residuals, images)
    return best


def _accelerated(residuals: list[Tensor], images: list[Tensor]) -> Tensor:
    """The next iterate: that combination of the last images of the map whose residual is least (Anderson 1965; Walker
    and Ni 2011), for each image of the batch by itself."""
    if len(residuals) == 1:
        return images[0]
    last = residuals[-1].flatten(1).double()  # B N
    steps = torch.stack([last - r.flatten(1).double() for r in residuals[:-1]], -1)  # B N m
    gram = steps.mT @ steps  # B m m
    # Differences that have become parallel make the system singular: a ridge far below what matters.
    ridge = 1e-12 * gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300)
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram, steps.mT @ last[..., None])  # B m 1
    moved = torch.stack([images[-1].flatten(1).double() - g.flatten(1).double() for g in images[:-1]], -1)
    return images[-1] - (moved @ weights).view_as(images[-1]).to(images[-1].dtype)


# -- two states, exactly invertible by their form ------------------------------------------------------------------


def edict_decode(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, p: float | None = None) -> Iterator[Step]:
    """Exact diffusion inversion by coupled transformations (Wallace et al. 2023, EDICT, section 4): two states, each
    moved by the other's slope, then mixed with weight p. Two calls a step; the two take turns at being first.

    x: B 2C H W, both states one behind the other. p: None is 0.93, as the paper has it; on more than 50 steps nearer to
    1, so that p^(-2 steps), by which the way up multiplies what the two differ by, stays what it is with 50.
    """
    p = _mixing(sigmas) if p is None else p
    a, b = x.chunk(2, 1)
    for i, s, s1 in intervals(sigmas):
        if i % 2:
            a, b = b, a
        a, x0 = a + (s1 - s) * _slope(denoiser, b, s), b
        b = b + (s1 - s) * _slope(denoiser, a * _rescaled(s, s1), s)
        a = p * a + (1 - p) * b
        b = p * b + (1 - p) * a
        if i % 2:
            a, b = b, a
        yield Step(i, s1, torch.cat([a, b], 1), x0)


def edict_encode(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, p: float | None = None) -> Iterator[Step]:
    """The way back of `edict_decode` (Wallace et al. 2023, section 4): each of its lines undone, in reverse.

    Exact but for rounding, which each step multiplies by up to 1 / p^2.
    """
    p = _mixing(sigmas) if p is None else p
    a, b = x.chunk(2, 1)
    last = len(sigmas) - 2
    for i, s1, s in intervals(sigmas.flip(0)):
        swapped = (last - i) % 2
        if swapped:
            a, b = b, a
        b = (b - (1 - p) * a) / p
        a = (a - (1 - p) * b) / p
        b = b - (s1 - s) * _slope(denoiser, a * _rescaled(s, s1), s)
        a = a - (s1 - s) * _slope(denoiser, b, s)
        if swapped:
            a, b = b, a
        yield Step(i, s, torch.cat([a, b], 1), a)


def _mixing(sigmas: Tensor) -> float:
    return float(0.93 ** min(1.0, 50 / (len(sigmas) - 1)))


def _rescaled(s: float, s1: float) -> float:
    """The second call of EDICT is given the state of level s1 as it is in variance-preserving coordinates, while the
    network is told s."""
    return math.sqrt((1 + s * s) / (1 + s1 * s1))


def bdia_decode(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, gamma: float = 1.0) -> Iterator[Step]:
    """Bidirectional integration approximation (Zhang et al. 2023, BDIA): the next state from the last two, by the
    slope at the middle one. One call a step, and none at the first.

    x: B 2C H W, the state of the first level and that of the second. gamma: how far the state before is trusted rather
    than DDIM's step, above 0 and at most 1. It counts in variance-exploding coordinates, where the scales of two levels
    do not differ; theirs is this one times the ratio of sqrt(abar) of the next level to the last.
    """
    before, now = x.chunk(2, 1)
    levels = sigmas.tolist()
    x0 = _meeting_point(before, now, levels[0], levels[1])
    for i, s, s1 in intervals(sigmas):
        if i + 2 == len(levels):
            yield Step(i, s1, torch.cat([now, now], 1), x0)
            return
        s2 = levels[i + 2]
        x0 = denoiser(now, s1).x0
        ahead = now + gamma * (before - now) + (gamma * (s1 - s) + s2 - s1) * (now - x0) / s1
        yield Step(i, s1, torch.cat([now, ahead], 1), x0)
        before, now = now, ahead


def bdia_encode(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, gamma: float = 1.0) -> Iterator[Step]:
    """The way back of `bdia_decode` (Zhang et al. 2023). The first step, from the picture alone, is DDIM
    inversion's; from then on it is exact but for rounding, which each step multiplies by 1 / gamma.

    x: B 2C H W at the last level; its second half is not looked at.
    """
    now = x.chunk(2, 1)[0]
    ahead, below = now, 0.0
    for i, s, above in intervals(sigmas.flip(0)):
        x0 = denoiser(now, s).x0
        slope = (now - x0) / s
        if i == 0:
            before = now + (above - s) * slope
        else:
            before = now + (ahead - now - (gamma * (s - above) + below - s) * slope) / gamma
        ahead, now, below = now, before, s
        yield Step(i, above, torch.cat([now, ahead], 1), x0)


def _slope(denoiser: Denoiser, x: Tensor, s: float) -> Tensor:
    return (x - denoiser(x, s).x0) / s


def _meeting_point(x: Tensor, ahead: Tensor, s: float, s1: float) -> Tensor:
    """The x0 for which `toward` leads from x at s to `ahead` at s1."""
    return (ahead - s1 / s * x) / (1 - s1 / s)


# -- every method once ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inversion:
    """One way to walk a grid both ways."""

    name: str
    encode: Walk
    decode: Walk
    pair: bool
    """Its state is two: x is B 2C H W, and the first half is the picture's."""
    exact: bool
    """decode undoes encode but for rounding (and the tolerance of an iteration), whatever the denoiser."""
    title: str
    paper: str

    def start(self, x: Tensor) -> Tensor:
        """What encode begins with, of a state B C H W at the last level."""
        return torch.cat([x, x], 1) if self.pair else x

    def picture(self, x: Tensor) -> Tensor:
        """The picture's part of a state, B C H W."""
        return x.chunk(2, 1)[0] if self.pair else x

    def decode_calls(self, steps: int) -> int:
        """How often decoding asks the denoiser, for `steps` intervals."""
        count = 0

        def counting(x: Tensor, sigma: float) -> Estimate:
            nonlocal count
            count += 1
            return Estimate(x)

        levels = torch.arange(steps + 1, 0, -1, dtype=torch.float64)
        for _ in self.decode(counting, self.start(torch.zeros(1, 1, 1, 1)), levels):
            pass
        return count


INVERSIONS: Mapping[str, Inversion] = MappingProxyType(
    {
        one.name: one
        for one in (
            Inversion(
                "ddim",
                ddim_encode,
                ddim_decode,
                pair=False,
                exact=False,
                title="Euler's method on the grid turned round",
                paper="Song et al. 2021",
            ),
            Inversion(
                "fixed_point",
                fixed_point_encode,
                ddim_decode,
                pair=False,
                exact=True,
                title="each of DDIM's steps solved for where it started, by accelerated iteration",
                paper="Pan et al. 2023; Meiri et al. 2023",
            ),
            Inversion(
                "edict",
                edict_encode,
                edict_decode,
                pair=True,
                exact=True,
                title="two coupled states",
                paper="Wallace et al. 2023",
            ),
            Inversion(
                "bdia",
                bdia_encode,
                bdia_decode,
                pair=True,
                exact=True,
                title="two states in a row",
                paper="Zhang et al. 2023",
            ),
        )
    }
)
"""Null-text optimisation is not among them: it walks as `ddim` does and changes the denoiser."""
