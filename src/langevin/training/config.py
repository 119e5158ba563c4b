"""What a training run is told: every field with its bound, unknown ones refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from langevin.errors import RequestError


class Config(BaseModel):
    """Base of all training configurations: frozen, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WarmUp(StrEnum):
    """How the decay of a moving average begins, so that the average forgets the first, random weights."""

    NONE = "none"
    """At its full value."""
    RATIO = "ratio"
    """(1 + n) / (10 + n) at step n, until that passes the full value."""
    POWER = "power"
    """1 - (1 + n / inverse_gamma)^-power, until that passes the full value: with power 2/3 it reaches 0.999 after
    31,600 steps, with 3/4 after 10,000 (Crowson's inverse-gamma warm-up, in k-diffusion and elsewhere)."""


class Average(Config):
    """An exponential moving average of the weights."""

    decay: float = Field(0.999, ge=0, lt=1)
    """The full value."""
    warmup: WarmUp = WarmUp.RATIO
    inverse_gamma: float = Field(1.0, gt=0)
    """Of WarmUp.POWER: steps, roughly, before the decay begins to rise."""
    power: float = Field(2 / 3, gt=0, le=1)
    """Of WarmUp.POWER."""

    def at(self, step: int) -> float:
        """The decay after optimiser step `step`, counted from 0."""
        match self.warmup:
            case WarmUp.NONE:
                return self.decay
            case WarmUp.RATIO:
                return min(self.decay, (1 + step) / (10 + step))
            case WarmUp.POWER:
                return min(self.decay, 1 - (1 + step / self.inverse_gamma) ** -self.power)
            case _:
                assert_never(self.warmup)


class Optimizer(StrEnum):
    """The rule by which gradients move the weights."""

    ADAMW = "adamw"
    """Loshchilov & Hutter 2019, torch's fused kernel."""
    ADAFACTOR = "adafactor"
    """Shazeer & Stern 2018, torch's: second moments of a matrix kept as one row and one column. `beta1` and `beta2`
    are not used."""
    SCHEDULE_FREE_ADAMW = "schedule_free_adamw"
    """Defazio et al. 2024, from the library `schedulefree`: it averages the weights itself, in the place of the moving
    averages, and takes a constant rate after the warm-up."""
    SCHEDULE_FREE_RADAM = "schedule_free_radam"
    """The same on RAdam (Liu et al. 2020), which needs no warm-up."""

    MUON = "muon"
    """Jordan et al. 2024, from the library `pytorch-optimizer`: a matrix, or a kernel as a matrix with a row for each
    output channel, moves by its momentum made orthogonal, scaled to the size of Adam's steps (Liu et al. 2025, section
    2.2); all else by Adam at a quarter of the rate. `beta1` and `beta2` are those of the latter."""

    @property
    def schedule_free(self) -> bool:
        return self in (Optimizer.SCHEDULE_FREE_ADAMW, Optimizer.SCHEDULE_FREE_RADAM)


FREE = frozenset({"log_every", "save_every", "sample_every", "keep", "workers", "recompute", "parallel"})
"""Fields of LoopConfig that may change when a run is resumed: they leave the weights as they are. (`parallel` does so
as the number of processes does: but for rounding.)"""


class LoopConfig(Config):
    """The part that is the same whatever is trained."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Samples a step, over all processes."""
    accumulate: int = Field(1, gt=0)
    """Parts in which a process works through its share of the batch, one after the other, for want of memory. The
    weights are those of the whole batch but for rounding, and for the numbers that dropout draws."""
    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float = Field(gt=0)
    """The highest rate: reached after `warmup`."""
    warmup: int = Field(200, ge=0)
    """Steps over which the rate rises linearly from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: a half cosine down to `final_rate` of the rate, or the rate as it is."""
    final_rate: float = Field(0.02, ge=0, le=1)
    """The last rate as a share of the highest."""
    weight_decay: float = Field(0.01, ge=0)
    """On matrices and kernels; not on biases, norms and embeddings."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Of the one moving average, called `ema`, that is kept where `averages` names none."""
    averages: Mapping[str, Average] = Field(default_factory=dict)
    """Several moving averages at once, by name, in place of the one. The first is the one that previews are drawn with
    and of which the finished model is made; checkpoints hold all."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """bfloat16, float16: autocast of the forward pass; weights, optimiser and averages stay float32. With float16 the
    loss is scaled, and a step whose scaled gradient overflows is left out and recorded."""
    recompute: bool = False
    """Keep no activations inside the networks' blocks but compute them again in the backward pass (Chen et al. 2016):
    less memory, the time of one more forward pass, the same weights."""
    compile: bool = False
    """Run the networks' blocks through torch.compile."""
    channels_last: bool = False
    """Keep kernels and activations with the channels innermost, which convolutions on a GPU's matrix units want."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: each keeps all weights (DistributedDataParallel), or its part of them, of their averages
    and of the optimiser's state (FSDP2). A run may change from one to the other."""
    workers: int = Field(0, ge=0)
    """Threads that prepare batches ahead (captions, pictures, noise). The numbers do not depend on them."""
    log_every: int = Field(20, gt=0)
    save_every: int = Field(500, gt=0)
    """Steps between checkpoints."""
    sample_every: int = Field(1000, gt=0)
    """Steps between sample grids, and between drawings of the curves."""
    keep: int = Field(2, gt=0)
    """How many checkpoints are kept; older ones are removed after a newer one is safe."""

    @model_validator(mode="after")
    def _fits(self) -> LoopConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        for name in self.averages:
            if not re.fullmatch(r"[a-z0-9_-]{1,40}", name) or name in ("weights", "optimizer"):
                raise ValueError(f"averages: {name!r} cannot be a name: 1 to 40 of a-z, 0-9, _ and -, not weights")
        if self.optimizer.schedule_free:
            if self.schedule != "constant":
                raise ValueError(f"{self.optimizer} takes a constant rate: set schedule to constant too")
            if self.averages:
                raise ValueError(f"{self.optimizer} averages the weights itself: leave averages empty")
            if not self.beta1:
                raise ValueError(f"beta1 0: {self.optimizer} needs more than 0")
        return self

    @property
    def moving_averages(self) -> Mapping[str, Average]:
        """The averages that a checkpoint holds, the first first."""
        return self.averages or {"ema": Average(decay=self.ema_decay)}


def override(config: Any, assignments: list[str]) -> Any:
    """A copy of a config with `a.b=value` assignments made. Raises RequestError for an unknown name or a bad value."""
    data = config.model_dump(mode="json")
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise RequestError(f"--set {assignment}: write it as name=value, for instance diffusion.loop.steps=100")
        place = data
        *path, last = name.split(".")
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
            if place is None:
                break
        if not isinstance(place, dict) or last not in place:
            raise RequestError(f"--set {assignment}: there is no field {name!r}; {_near(data, path, last)}")
        value = _value(text)
        if isinstance(value, bool) and not isinstance(place[last], bool):  # else pydantic takes true for 1
            raise RequestError(f"--set {assignment}: {name} cannot be true or false; it is {place[last]!r} now")
        place[last] = value
    try:
        return TypeAdapter(type(config)).validate_python(data)
    except ValidationError as error:
        raise RequestError(f"--set: {_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    """Where it is, what was given, what is allowed. A whole section as the value given would say nothing."""
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    given = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}{given}: {message}" if where else message


def _value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _near(data: Any, path: list[str], wanted: str) -> str:
    """The fields that look like the one that was meant, else all that are there."""
    for i, part in enumerate(path):
        if not isinstance(data, dict) or part not in data:
            wanted = path[i]
            break
        data = data[part]
    names = list(data) if isinstance(data, dict) else []
    if near := get_close_matches(wanted, names):
        return f"the nearest: {', '.join(near)}"
    return f"the fields here: {', '.join(names) or 'none'}"
