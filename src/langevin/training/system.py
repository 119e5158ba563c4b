"""What a recipe trains: one or several stages, one after the other, and what is written at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import Field

from langevin.training.caching import CacheConfig
from langevin.training.config import FREE, Config, LoopConfig, override
from langevin.training.data import DataConfig, PictureSet
from langevin.training.data.order import BucketOrder
from langevin.training.loop import Objective, TrainingStep, train
from langevin.training.randomness import generator


class System(Config, ABC):
    """The whole configuration of a training run. A stage's own options are the field of its name."""

    seed: int = Field(0, ge=0)
    data: DataConfig
    cache: CacheConfig = CacheConfig()

    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """For each stage, the fields besides `seed`, `data` and its own on which its weights depend."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Fields, by their full names, on which no weights depend: they may change when a run is resumed."""

    trial: ClassVar[tuple[str, ...]] = ()
    """What makes a recipe of this system so small that it runs in seconds, written as for `--set`: networks' and
    pictures' sizes. The loops' lengths and which samples are wanted need not be named."""

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
        seen: PictureSet = getattr(objective, "data", data)  # some of the pictures, perhaps
        order = BucketOrder(self.seed, seen.bucket) if len(seen.parts) > 1 else None
        yield from train(
            objective, self.loops[stage], run / stage, seed=self.seed, device=device, resume=resume, order=order
        )

    def smallest(self) -> Self:
        """The same recipe on a small scale: four steps of four samples a stage, of whatever data, with `trial`."""
        few = {"steps": 4, "batch_size": 4, "warmup": 1, "log_every": 1, "save_every": 2, "sample_every": 4}
        loops = [f"{stage}.loop.{name}={value}" for stage in self.loops for name, value in few.items()]
        small: Self = override(self, ["data.include={}", "data.exclude={}", *loops, *self.trial])
        return small

    def depends(self, stage: str) -> frozenset[str]:
        """The top-level fields on which the stage's weights depend."""
        return frozenset({"seed", "data", stage, *self.shared.get(stage, ())})

    def may_change(self, name: str) -> bool:
        """Whether a field, by its full name, may differ in a further sitting."""
        return (
            name.startswith("cache.")
            or name in self.free
            or name in {f"{stage}.loop.{field}" for stage in self.loops for field in FREE}
        )
