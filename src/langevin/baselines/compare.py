"""Families of models at equal compute: each is trained for the same time, then sampled and measured alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor

from langevin.baselines.families import FAMILIES, Family
from langevin.baselines.family import PictureModel
from langevin.baselines.pixels import from_levels, is_grey, to_levels
from langevin.checkpoints.atomic import atomic_write
from langevin.errors import DataError, RequestError
from langevin.evaluation.extractors import OpenExtractor
from langevin.evaluation.features import Views
from langevin.evaluation.figures import Figure
from langevin.evaluation.sets import SetMetric, set_figures, split_real
from langevin.images.grids import save_grid
from langevin.training.checkpointing import steps_saved
from langevin.training.config import override
from langevin.training.data import PictureSet, read_data
from langevin.training.system import System

Progress = Callable[[str], object]
"""Is told, in words, what is being done."""

METRICS = (SetMetric.FRECHET, SetMetric.PRECISION_RECALL, SetMetric.DENSITY_COVERAGE)
_ENDLESS = 10**7
"""Steps of a run that ends by the clock."""


class Clock(StrEnum):
    """How time is told, in training and in sampling."""

    WALL = "wall"
    CPU = "cpu"
    """The process's own processor time over the threads: for a machine that has other work too."""

    def now(self) -> float:
        """Seconds since some moment."""
        match self:
            case Clock.WALL:
                return time.perf_counter()
            case Clock.CPU:
                return time.process_time() / torch.get_num_threads()
            case _:
                assert_never(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is the same for all families."""

    minutes: float | None
    """Training time of each family by `clock`, its setup (reading, encoding, the first step) not counted."""
    steps: int | None
    """Steps of each stage instead of a time. Just one of the two is set."""
    samples: int = 1000
    """Pictures that each family makes, and real ones on either side of the floor."""
    batch: int = 250
    """Pictures made at once."""
    likelihood_samples: int = 32
    """Held-out pictures whose bits per dimension are taken."""
    sampler_steps: int = 50
    """Network evaluations for a picture of the diffusion families."""
    clock: Clock = Clock.WALL
    held_out: str = "t10k"
    """The split of the data that is compared with; the recipes train on another."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise RequestError("compare needs a budget: give either --minutes or --steps")
        for name, low in (("steps", 1), ("samples", 2), ("batch", 1), ("likelihood_samples", 1), ("sampler_steps", 2)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise RequestError(f"{name.replace('_', '-')} {value} is out of range; it must be at least {low}")
        if self.minutes is not None and not 0 < self.minutes <= 10**5:
            raise RequestError(f"minutes {self.minutes:g} is out of range; it must be above 0 and at most 100000")


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What the training of one stage took, by the comparison's clock."""

    seconds: float
    setup_seconds: float
    """Until the end of the first step, in the last sitting: reading, encoding, allocating."""
    steps: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one family."""

    family: str
    recipe: str
    config: Mapping[str, Any]
    parameters: int
    """Numbers that sampling uses."""
    stages: Mapping[str, StageTime]
    seconds_per_picture: float
    """Of sampling, in batches."""
    seconds_alone: float
    """Of sampling a single picture."""
    figures: tuple[Figure, ...]

    @property
    def training_seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    def figure(self, name: str) -> Figure | None:
        """The first whose name begins so."""
        return next((f for f in self.figures if f.name.startswith(name)), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        return cls(**{
            **data,
            "stages": {name: StageTime(**stage) for name, stage in data["stages"].items()},
            "figures": tuple(Figure(**figure) for figure in data["figures"]),
        })  # fmt: skip


def configured(name: str, settings: Settings, assignments: Sequence[str] = ()) -> System:
    """The family's recipe with the comparison's budget. assignments: as of --set, the family's name before each."""
    family = FAMILIES[name]
    system = family.make()
    own = [text.removeprefix(f"{name}.") for text in assignments if text.startswith(f"{name}.")]
    # The end of a run that is limited by time is not known before, so that its rate is held after the warm-up.
    limit = {"steps": settings.steps} if settings.steps is not None else {"steps": _ENDLESS, "final_rate": 1}
    fields: dict[str, Any] = {**limit, "sample_every": _ENDLESS}
    loops = [f"{stage}.loop.{field}={value}" for stage in system.loops for field, value in fields.items()]
    made: System = override(system, [f"seed={settings.seed}", *loops, *own])
    return made


def compare(
    names: Sequence[str],
    folder: Path,
    out: Path,
    settings: Settings,
    extractor: OpenExtractor,
    *,
    assignments: Sequence[str] = (),
    progress: Progress = lambda text: None,
) -> list[Result]:
    """Train, sample and measure the families; a family that is finished in `out` is not done again.

    Raises RequestError where `out` was begun with other settings, DataError where the data has too few held-out
    pictures.
    """
    systems = {name: configured(name, settings, assignments) for name in names}
    first = systems[names[0]].data
    if any(system.data != first for system in systems.values()):
        raise RequestError("the families must see the same data: give --set FAMILY.data... for all or none of them")
    pictures = read_data(folder, first)
    held_out = read_data(folder, first.model_copy(update={"include": {"split": (settings.held_out,)}}))
    if set(map(str, first.include.get("split", ()))) & {settings.held_out}:
        raise RequestError(f"held-out {settings.held_out}: the recipes train on that split; give another")
    if extractor.size not in (None, first.size):
        raise RequestError(f"{extractor.name} takes {extractor.size} pixels, the recipes make {first.size}")
    if len(held_out) < max(2 * settings.samples, settings.likelihood_samples):
        raise DataError(
            f"the split {settings.held_out} has {len(held_out)} pictures: --samples {settings.samples} needs twice as "
            f"many, --likelihood-samples {settings.likelihood_samples} at least that"
        )
    check_settings(out, settings, extractor, pictures, held_out)
    halves = split_real(len(held_out), settings.samples, settings.seed)
    reference = extractor.views(held_out.pictures[halves.reference])
    spare = extractor.views(held_out.pictures[halves.spare])
    save_grid(out / "real.png", held_out.images(halves.reference[:64]), columns=8)
    grey = is_grey(pictures)
    results = []
    for name in names:
        run = out / name
        config = systems[name].model_dump(mode="json")
        result = read_result(run / "result.json", config)
        if result is None:
            stages = train_family(FAMILIES[name], systems[name], pictures, run, settings, progress)
            progress(f"{name}: sampling")
            model = FAMILIES[name].open(run / "model.safetensors", settings.sampler_steps)
            made, per_picture, alone = sample_family(model, settings, grey=grey)
            save_grid(run / "samples.png", from_levels(made[:64]), columns=8)
            progress(f"{name}: measuring")
            figures = _figures(extractor.views(made), reference, spare, extractor, settings)
            some = held_out.pictures[halves.reference[: settings.likelihood_samples]]
            figures += model.likelihood(some, seed=settings.seed)
            result = Result(
                family=name,
                recipe=FAMILIES[name].recipe,
                config=config,
                parameters=model.parameters,
                stages=stages,
                seconds_per_picture=per_picture,
                seconds_alone=alone,
                figures=tuple(figures),
            )
            with atomic_write(run / "result.json") as temporary:
                temporary.write_text(json.dumps(result.to_json(), indent=1))
        results.append(result)
    return results


def train_family(
    family: Family, system: System, data: PictureSet, run: Path, settings: Settings, progress: Progress
) -> dict[str, StageTime]:
    """Train the stages, or go on with them, and write `run/model.safetensors`."""
    taken = {}
    for stage in system.loops:
        share = family.shares.get(stage, 1.0)
        limit = None if settings.minutes is None else 60 * settings.minutes * share
        taken[stage] = train_stage(system, stage, data, run, limit, settings.clock, progress)
    system.finish(data, run)
    return taken


def train_stage(
    system: System, stage: str, data: PictureSet, run: Path, limit: float | None, clock: Clock, progress: Progress
) -> StageTime:
    """Train until `limit` seconds are spent, or to the configured number of steps; what earlier sittings spent counts.

    `run/STAGE/clock.json` holds the seconds spent at each checkpoint.
    """
    loop = system.loops[stage]
    path = run / stage / "clock.json"
    spent = _read_clock(path)
    done = max(steps_saved(run / stage / "checkpoints"), default=0)
    seconds = spent[max((n for n in spent if n <= done), default=0)]
    setup: float | None = None
    said = time.monotonic()
    if done < loop.steps and (limit is None or seconds < limit):
        began = clock.now()
        steps = system.train_stage(stage, data, run, device="cpu", resume=True)
        for step in steps:
            taken = clock.now() - began
            if setup is None:
                setup = taken
            else:
                seconds += taken
            done = step.step
            over = limit is not None and seconds >= limit
            if over or done == loop.steps or done % loop.save_every == 0:
                spent[done] = seconds
                _write_clock(path, spent)
            if time.monotonic() - said > 20:
                said = time.monotonic()
                end = f"of {limit:.0f} s" if limit is not None else f"of {loop.steps} steps"
                progress(f"{run.name}, {stage}: {done} steps, {seconds:.0f} s, {end}")
            if over:
                steps.close()  # writes a checkpoint
                break
            began = clock.now()
    return StageTime(seconds=seconds, setup_seconds=setup or 0.0, steps=done, images=done * loop.batch_size)


def sample_family(model: PictureModel, settings: Settings, *, grey: bool) -> tuple[Tensor, float, float]:
    """Pictures, uint8 N 3 H W, with the seeds `seed`, `seed + 1` ...; seconds for each in batches, and for one alone.

    grey: the mean of the channels is taken, as the data has only one.
    """
    seeds = range(settings.seed, settings.seed + settings.samples)
    made: list[Tensor] = []
    began = settings.clock.now()
    for start in range(0, len(seeds), settings.batch):
        made.append(model.sample(seeds[start : start + settings.batch]))
    seconds = settings.clock.now() - began
    began = settings.clock.now()
    model.sample(seeds[:1])
    alone = settings.clock.now() - began
    images = torch.cat(made)
    if grey:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return to_levels(images).to(torch.uint8), seconds / len(seeds), alone


def check_settings(
    out: Path, settings: Settings, extractor: OpenExtractor, data: PictureSet, held_out: PictureSet
) -> None:
    """Write `out/settings.json`, or raise RequestError where it is there and says otherwise."""
    path = out / "settings.json"
    now = {
        **asdict(settings), "extractor": extractor.sha256, "data": data.fingerprint,
        "held_out_data": held_out.fingerprint, "threads": torch.get_num_threads(),
    }  # fmt: skip
    try:
        before = json.loads(path.read_text()) if path.is_file() else None
    except ValueError:
        raise RequestError(f"{path} is damaged: remove it, or give another --out") from None
    for name, value in now.items():
        if before is not None and before.get(name) != value:
            raise RequestError(
                f"{out} was begun with {name} = {before.get(name)!r}, not {value!r}: give the same options, or another "
                "--out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now, indent=1))
    except OSError as error:
        raise RequestError(f"{out} cannot be written ({error.strerror}): give another --out") from None


def read_result(path: Path, config: Mapping[str, Any]) -> Result | None:
    """The result of an earlier sitting, if there is one. RequestError where it is of another configuration."""
    if not path.is_file():
        return None
    try:
        result = Result.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError):
        raise RequestError(f"{path} is damaged: remove it to measure the family again") from None
    if result.config != config:
        raise RequestError(f"{path} is of another configuration of {result.family}: give another --out")
    return result


def _figures(made: Views, reference: Views, spare: Views, extractor: OpenExtractor, settings: Settings) -> list[Figure]:
    return set_figures(made, reference, spare, metrics=METRICS, extractor=extractor, seed=settings.seed)


def _read_clock(path: Path) -> dict[int, float]:
    """Seconds spent at each checkpoint; at step 0, none."""
    try:
        lines = json.loads(path.read_text())
        return {0: 0.0, **{int(step): float(seconds) for step, seconds in lines.items()}}
    except (OSError, ValueError, TypeError, AttributeError):
        return {0: 0.0}


def _write_clock(path: Path, spent: Mapping[int, float]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(spent))
