"""What a recipe trains: one or several stages, one after the other, and what is written at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from langevin.training.config import Config, LoopConfig
from langevin.training.data import DataConfig, PictureSet
from langevin.training.loop import FREE, Objective, TrainingStep, train
from langevin.training.randomness import generator


class System(Config, ABC):
    """The whole configuration of a training run. A stage's own options are the field of its name."""

    seed: int = Field(0, ge=0)
    data: DataConfig

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """For each stage, the fields besides `seed`, `data` and its own on which its weights depend."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Fields, by their full names, on which no weights depend: they may change when a run is resumed."""

    @property
    @abstractmethod
    def loops(self) -> Mapping[str, LoopConfig]:
        """The stages in the order in which they are trained, each with its loop's options."""

    def prepare(self, run: Path, device: str) -> Generator[tuple[str, int, int]]:
        """Make what has to be in the run folder before the first stage, or what is left of it; yields (what, done, of
        how many). Nothing by default."""
        yield from ()

    @abstractmethod
    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        """What `stage` trains. Raises RequestError where it needs an earlier stage that is not finished in `run`."""

    @abstractmethod
    def finish(self, data: PictureSet, run: Path) -> Path:
        """Write the finished model from the stages of `run`; returns its path."""

    def train_stage(
        self, stage: str, data: PictureSet, run: Path, *, device: str, resume: bool
    ) -> Generator[TrainingStep]:
        """Train one stage in the folder `run/STAGE`."""
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator(self.seed, "weights", stage))))
        objective = self.objective(stage, data, run, device)
        yield from train(objective, self.loops[stage], run / stage, seed=self.seed, device=device, resume=resume)

    def depends(self, stage: str) -> frozenset[str]:
        """The top-level fields on which the stage's weights depend."""
        return frozenset({"seed", "data", stage, *self.shared.get(stage, ())})

    def may_change(self, name: str) -> bool:
        """Whether a field, by its full name, may differ in a further sitting."""
        return name in self.free or name in {f"{stage}.loop.{field}" for stage in self.loops for field in FREE}
