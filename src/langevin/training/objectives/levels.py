"""Which noise levels the samples of a batch get."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, assert_never

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from langevin.diffusion.grids import trailing
from langevin.diffusion.schedule import NoiseSchedule
from langevin.training.config import Config
from langevin.training.distributed import gather_rows


class LevelSampling(StrEnum):
    """The distribution of the noise levels in training."""

    UNIFORM = "uniform"
    """Every timestep of the schedule alike (Ho et al. 2020)."""
    LOG_NORMAL = "log_normal"
    """log sigma is Gaussian (Karras et al. 2022, table 1); levels outside the schedule's are held at its ends."""
    GRID = "grid"
    """Only the levels that a sampler visits in `steps` steps of the trailing grid, each alike: for a model that is made
    for so many steps."""
    IMPORTANCE = "importance"
    """Timesteps in proportion to the root of the second moment of their last losses, the loss divided by it (Nichol &
    Dhariwal 2021, section 3.3)."""

    @property
    def parameters(self) -> Mapping[str, float]:
        """Its parameters with their published values."""
        match self:
            case LevelSampling.UNIFORM:
                return {}
            case LevelSampling.LOG_NORMAL:
                return {"mean": -1.2, "deviation": 1.2}
            case LevelSampling.GRID:
                return {"steps": 4}
            case LevelSampling.IMPORTANCE:
                return {"history": 10, "uniform_share": 0.001}
            case _:
                assert_never(self)


class LevelConfig(Config):
    """How noise levels are drawn. A parameter that is left at null has its published value."""

    name: LevelSampling = LevelSampling.UNIFORM
    mean: float | None = None
    """log_normal: mean of log sigma, -1.2."""
    deviation: float | None = Field(None, gt=0)
    """log_normal: standard deviation of log sigma, 1.2."""
    steps: int | None = Field(None, ge=1, le=1000)
    """grid: how many levels, 4."""
    history: int | None = Field(None, ge=1, le=1000)
    """importance: how many losses of each timestep are remembered, 10. Until every timestep has as many, all are
    drawn alike."""
    uniform_share: float | None = Field(None, gt=0, le=1)
    """importance: share of the draws that is uniform all the same, 0.001, so that no timestep is forgotten."""

    @model_validator(mode="after")
    def _fits(self) -> LevelConfig:
        check_parameters(
            self, self.name, self.name.parameters, ("mean", "deviation", "steps", "history", "uniform_share")
        )
        return self

    def parameter(self, name: str) -> float:
        """A parameter's value, the published one where none is given."""
        given = getattr(self, name)
        return self.name.parameters[name] if given is None else given


def check_parameters(config: Config, name: str, own: Mapping[str, float], all_of_them: Sequence[str]) -> None:
    """ValueError where a parameter is set that does nothing."""
    for field in all_of_them:
        if getattr(config, field) is not None and field not in own:
            raise ValueError(f"{field} {getattr(config, field)} has no meaning with {name}: leave it at null")


class Drawn(NamedTuple):
    """Noise levels of a batch."""

    sigma: Tensor
    """float64 [B]."""
    t: Tensor | None
    """int64 [B]: the timesteps; None where the levels are none of the schedule's."""
    share: Tensor
    """float64 [B]: what a uniform draw's probability is of the one drawn with. The loss times it is unbiased."""


class Levels(nn.Module, ABC):
    """A distribution of noise levels. What it learns during the run is in its buffers, and so in the checkpoints."""

    @abstractmethod
    def draw(self, streams: Sequence[torch.Generator], step: int) -> Drawn:
        """Level i from stream i, on the CPU."""

    def note(self, drawn: Drawn, losses: Tensor) -> None:
        """Learn from the losses [B] of the levels that were drawn."""


def make_levels(config: LevelConfig, schedule: NoiseSchedule) -> Levels:
    match config.name:
        case LevelSampling.UNIFORM:
            return UniformLevels(schedule)
        case LevelSampling.LOG_NORMAL:
            return LogNormalLevels(schedule, config.parameter("mean"), config.parameter("deviation"))
        case LevelSampling.GRID:
            return GridLevels(schedule, int(config.parameter("steps")))
        case LevelSampling.IMPORTANCE:
            return ImportanceLevels(schedule, int(config.parameter("history")), config.parameter("uniform_share"))
        case _:
            assert_never(config.name)


class UniformLevels(Levels):
    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def draw(self, streams: Sequence[torch.Generator], step: int) -> Drawn:
        t = torch.stack([torch.randint(len(self.schedule), (), generator=g) for g in streams])
        return Drawn(self.schedule.sigmas[t], t, torch.ones(len(t), dtype=torch.float64))


class LogNormalLevels(Levels):
    def __init__(self, schedule: NoiseSchedule, mean: float, deviation: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.mean, self.deviation = mean, deviation

    def draw(self, streams: Sequence[torch.Generator], step: int) -> Drawn:
        normal = torch.stack([torch.randn((), generator=g, dtype=torch.float64) for g in streams])
        sigma = torch.exp(self.mean + self.deviation * normal)
        held = sigma.clamp(self.schedule.sigma_min, self.schedule.sigma_max)
        return Drawn(held, None, torch.ones_like(held))


class GridLevels(Levels):
    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.t = schedule.t(trailing(schedule, min(steps, len(schedule)))).long()  # whole ones

    def draw(self, streams: Sequence[torch.Generator], step: int) -> Drawn:
        t = torch.stack([self.t[torch.randint(len(self.t), (), generator=g)] for g in streams])
        return Drawn(self.schedule.sigmas[t], t, torch.ones(len(t), dtype=torch.float64))


class ImportanceLevels(Levels):
    """The probabilities are those of the step's beginning, whatever the parts in which its batch is computed."""

    losses: Tensor
    """float64 [T, history]: the last losses of each timestep, the newest in place of the oldest."""
    seen: Tensor
    """int64 [T]: how many losses each timestep has had."""

    def __init__(self, schedule: NoiseSchedule, history: int, uniform_share: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.uniform_share = uniform_share
        self.register_buffer("losses", torch.zeros(len(schedule), history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(len(schedule), dtype=torch.int64))
        self._current: tuple[int, Tensor] | None = None

    def probabilities(self) -> Tensor:
        """Of each timestep, float64 [T], from what has been seen so far."""
        count, history = self.losses.shape
        if bool((self.seen < history).any()):
            return torch.full((count,), 1 / count, dtype=torch.float64)
        root = self.losses.cpu().square().mean(1).sqrt()
        total = float(root.sum())
        if not (math.isfinite(total) and total > 0):
            return torch.full((count,), 1 / count, dtype=torch.float64)
        return (1 - self.uniform_share) * root / total + self.uniform_share / count

    def draw(self, streams: Sequence[torch.Generator], step: int) -> Drawn:
        if self._current is None or self._current[0] != step:
            self._current = (step, self.probabilities())
        p = self._current[1]
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in streams])
        edges = p.cumsum(0)
        t = torch.searchsorted(edges, uniform * edges[-1], right=True).clamp(max=len(p) - 1)
        return Drawn(self.schedule.sigmas[t], t, 1 / (len(p) * p[t]))

    @torch.no_grad()
    def note(self, drawn: Drawn, losses: Tensor) -> None:
        assert drawn.t is not None
        rows = torch.stack([drawn.t.double(), losses.to("cpu", torch.float64)], 1)  # B 2
        rows = gather_rows(rows)  # each process has a part of the batch: all learn from all
        table, seen = self.losses.cpu(), self.seen.cpu()
        for t, loss in zip(rows[:, 0].long().tolist(), rows[:, 1], strict=True):
            table[t, int(seen[t]) % table.shape[1]] = loss
            seen[t] += 1
        self.losses.copy_(table)
        self.seen.copy_(seen)
