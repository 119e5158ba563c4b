"""Exact moments of a stochastic sampler, without drawing a number.

For Gaussian data the denoiser is affine in x, so a sampler's state is an affine function of its first state and of
every noise it takes. A batch holds one copy with no noise at all, one with the first state moved by 1, and one for each
independent source of noise with that source at 1: the differences are the coefficients of that function. Mean and
variance follow exactly; no estimate, no seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Step


class Source(Protocol):
    """What a sampler needs of `Noise` while it runs."""

    def step(self) -> Tensor: ...

    def between(self, sigma: float, sigma_next: float) -> Tensor: ...


Run = Callable[[Denoiser, Tensor, Source], Iterator[Step]]
"""A sampler with its grid and options already given."""


class Recorder:
    """Stands in for Noise: gives zeros and keeps what was asked for."""

    def __init__(self) -> None:
        self.steps = 0
        self.intervals: list[tuple[float, float]] = []

    def step(self) -> Tensor:
        self.steps += 1
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        self.intervals.append((sigma, sigma_next))
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)


class Impulses:
    """Stands in for Noise: copy 2 + j of the batch sees the j-th independent source at 1, everything else at 0.

    The sources of interval noise are the pieces into which all recorded interval ends cut the clock 1 / sigma^2; an
    interval takes each of its pieces by the square root of its share, as a Brownian path does.
    """

    def __init__(self, record: Recorder) -> None:
        cuts = sorted({_clock(sigma) for interval in record.intervals for sigma in interval})
        ends = torch.tensor(cuts, dtype=torch.float64)
        self._lengths = ends.diff()
        self._centres = (ends[1:] + ends[:-1]) / 2
        self._taken = len(self._lengths)
        self.batch = 2 + self._taken + record.steps

    def step(self) -> Tensor:
        noise = torch.zeros(self.batch, 1, 1, 1, dtype=torch.float64)
        noise[2 + self._taken] = 1
        self._taken += 1
        return noise

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        low, high = _clock(sigma), _clock(sigma_next)
        noise = torch.zeros(self.batch, 1, 1, 1, dtype=torch.float64)
        # By their centres: ends that were computed in two ways may differ in the last digit.
        inside = (low < self._centres) & (self._centres < high)
        share = torch.where(inside, self._lengths, 0) / (high - low)
        noise[2 : 2 + len(share)] = share.sqrt().view(-1, 1, 1, 1)
        return noise


class Moments(NamedTuple):
    """Of one state."""

    sigma: float
    mean: float
    variance: float
    gain: float
    """d state / d first state: its covariance with the first state is this times the first state's variance."""
    response: Tensor
    """To each independent source, float64 [sources]."""


def moments(run: Run, denoiser: Denoiser, mean: float, variance: float) -> list[Moments]:
    """Of every state that `run` yields, for a first state with the given mean and variance and an affine denoiser."""
    record = Recorder()
    first = torch.full((1, 1, 1, 1), mean, dtype=torch.float64)
    for _ in run(denoiser, first, record):
        pass
    impulses = Impulses(record)
    first = torch.full((impulses.batch, 1, 1, 1), mean, dtype=torch.float64)
    first[1] += 1
    states = []
    for step in run(denoiser, first, impulses):
        response = (step.x - step.x[:1]).flatten()
        total = float(response[1] ** 2 * variance + (response[2:] ** 2).sum())
        states.append(Moments(step.sigma, float(step.x[0]), total, float(response[1]), response[2:].clone()))
    return states


def _clock(sigma: float) -> float:
    return 1 / sigma**2
