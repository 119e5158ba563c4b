"""The choices by which programs differ, named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from langevin.diffusion.noise import IntervalNoise
from langevin.diffusion.prediction import Prediction


class Spacing(StrEnum):
    """Which timesteps of 0 ... T-1 a run of N steps visits, highest first."""

    LEADING = "leading"
    """`i * (T // N) + 1` for i = N-1 ... 0: starts far below T-1 (951 for N = 20), so a trace of signal is assumed in
    what is pure noise (Lin et al. 2024)."""
    LEADING_OPEN = "leading of N+1"
    """LEADING with N+1 points, of which the lowest is left out."""
    LINSPACE = "linspace"
    """N equal steps from T-1 to 0, both included, fractional; a run of one step is at T-1."""
    LINSPACE_UP = "linspace, counted up"
    """LINSPACE counted from 0 and turned round: a run of one step is at timestep 0, where hardly any noise is left."""
    LINSPACE_UP_ROUNDED = "linspace, counted up, rounded"
    """LINSPACE_UP rounded to whole timesteps, half to even."""
    LINSPACE_OPEN = "linspace of N+1"
    """N+1 equal steps from T-1 to 0, fractional, of which the last is left out."""
    LINSPACE_OPEN_ROUNDED = "linspace of N+1, rounded"
    """LINSPACE_OPEN rounded to whole timesteps, half to even."""
    LINSPACE_CLOSED = "linspace to the end"
    """N+1 equal steps from T-1 to 0, all of them: the grid itself ends at timestep 0, not at sigma = 0."""
    TRAILING = "trailing"
    """`round(T - i T / N) - 1`: starts at T-1 for every N."""
    STRIDE = "stride"
    """`range(0, T, T // N) + 1`: more than N timesteps where N does not divide T (14 for 13 steps)."""
    STRIDE_CLIPPED = "stride, clipped"
    """STRIDE with timesteps above T-1 put to T-1."""
    STRIDE_INSIDE = "stride, inside"
    """`range(1, T, T // N)`: STRIDE without timesteps above T-1."""
    SIMPLE = "simple"
    """`T - 1 - int(i T / N)`: TRAILING with truncation."""
    DISTILLED = "distilled"
    """N of the 50 timesteps 19, 39 ... 999 that latent consistency models were distilled on, evenly, from 999."""


class Between(StrEnum):
    """The noise level at a fractional timestep: what is interpolated linearly between the table's entries."""

    LOG_SIGMA = "log sigma"
    SIGMA = "sigma"
    LOG_ALPHA = "log alpha"
    """log sqrt(abar), as the reference code of DPM-Solver does."""


class Times(StrEnum):
    """Which time the network is told for a noise level of the grid. Levels between grid points (the midpoints of
    second-order solvers) are interpolated in log sigma, except with NEAREST."""

    CONTINUOUS = "continuous"
    """Interpolated in log sigma; whole timesteps at the table's own levels."""
    TABLE = "table"
    """The timesteps that the grid was made from."""
    ROUNDED = "rounded"
    """CONTINUOUS rounded to a whole timestep (half to even), while sigma stays as it is."""
    TRUNCATED = "truncated"
    """CONTINUOUS cut to a whole timestep, while sigma stays as it is. A level that is a table entry comes out one
    lower: float32 puts it a hair below its whole timestep."""
    NEAREST = "nearest"
    """The whole timestep whose log sigma is nearest, for every level the solver asks for."""


class Prior(StrEnum):
    """The standard deviation of the first state x, in variance-exploding coordinates."""

    SIGMA = "sigma"
    """The first sigma of the grid: `x = sigma eps`."""
    TOTAL = "sqrt(1 + sigma^2)"
    """That of x for data of unit variance: `z = eps` in variance-preserving coordinates."""
    TOTAL_AT_MAX = "sqrt(1 + sigma^2) at the largest sigma"
    """TOTAL where the grid starts at the schedule's largest sigma (to 1e-5), else SIGMA."""


class Last(StrEnum):
    """Where the grid ends."""

    ZERO = "zero"
    """At sigma = 0 after the last timestep: the last estimate of x0 is the picture."""
    SIGMA_MIN = "sigma_min"
    """At the schedule's smallest sigma (`set_alpha_to_one=False`): the picture keeps that much noise."""
    OWN = "own"
    """At the grid's own lowest timestep: that one is never given to the network."""


class ImageToImage(StrEnum):
    """How N steps and a strength give the part of the grid that is run."""

    LANGEVIN = "langevin"
    """The last `ceil(N * strength)` steps of the grid of N; at least one."""
    DIFFUSERS = "diffusers"
    """The last `min(int(N * strength), N)` steps of the grid of N, truncated: 10 steps at 0.29 are 2."""
    A1111 = "a1111"
    """The last `int(min(strength, 0.999) * N) + 1` steps of the grid of N."""
    COMFYUI = "comfyui"
    """N steps are really run: the last N of a grid of `int(N / strength)`."""
    COMPVIS = "compvis"
    """The last `int(strength * N)` steps."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a program places the noise levels of one grid, and what it does at both ends."""

    spacing: Spacing | None = None
    """Timesteps from which the levels are taken; None where `curve` gives the levels."""
    between: Between = Between.LOG_SIGMA
    """The level at a fractional timestep of `spacing`."""
    curve: str | None = None
    """A grid of `langevin.diffusion.grids` over the schedule's whole range, in sigma itself."""
    curve_options: Mapping[str, Any] = field(default_factory=dict)
    curve_ends: Spacing | None = None
    """The curve goes between the ends of this spacing's levels: a run of one step is then at the smallest sigma."""
    times: Times = Times.CONTINUOUS
    prior: Prior = Prior.SIGMA
    last: Last = Last.ZERO
    discard_penultimate: bool = False
    """The grid is made with one step more and loses its lowest level above zero."""
    divisors_only: bool = False
    """The program steps down by T // N whatever its list of timesteps says: list and steps agree only where N
    divides T."""
    fewest_steps: int = 1
    """The program fails, or gives back the noise, below this number."""


@dataclass(frozen=True, kw_only=True)
class SamplerRule:
    """What a program does for one sampler."""

    grid: str
    """The grid that it takes when none is asked for."""
    grids: Mapping[str, Placement]
    """Every grid that it has for this sampler, by our name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of our sampler that make it that program's."""
    options_for: Mapping[Prediction, Mapping[str, Any]] = field(default_factory=dict)
    """Further ones for a model's prediction type."""
    options_below: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Further ones for runs of fewer steps than the key."""
    one_step: str | None = None
    """The sampler that a run of a single step amounts to, where the program treats it apart."""
    predictions: frozenset[Prediction] | None = None
    """Prediction types that it handles; None: all."""
    notice: str = ""
    """What cannot be reproduced, for the result."""


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """One program's choices."""

    name: str
    samplers: Mapping[str, SamplerRule]
    interval_noise: IntervalNoise
    """What SDE solvers draw for an interval of noise levels: a part of one Brownian path, or the next draw."""
    step_seed_offset: int | None = None
    """None: the noise of the steps continues the generator of the first noise. A number: it comes from a second
    generator, seeded with the image's seed plus this."""
    whole_batch_noise: bool = False
    """One generator draws the noise of the whole batch, so only image 0 of a batch can be reproduced alone."""
    weighting: str = "none"
    """How prompt weights act: 'a1111', 'comfyui', or 'none' where the program has no weights."""
    long_prompts: str = "truncate"
    """'chunk' or 'truncate'."""
    own_prompt_lengths: bool = False
    """Whether prompt and negative prompt keep their own numbers of chunks; else empty chunks fill the shorter one."""
    image_to_image: ImageToImage = ImageToImage.DIFFUSERS
