"""What a training run is told: every field with its bound, unknown ones refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from langevin.errors import RequestError


class Config(BaseModel):
    """Base of all training configurations: frozen, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoopConfig(Config):
    """The part that is the same whatever is trained."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Samples a step."""
    learning_rate: float = Field(gt=0)
    """The highest rate: reached after `warmup`, then a half cosine down to `final_rate` of it."""
    warmup: int = Field(200, ge=0)
    """Steps over which the rate rises linearly from 0."""
    final_rate: float = Field(0.02, ge=0, le=1)
    """The last rate as a share of the highest."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's, on matrices and kernels; not on biases, norms and embeddings."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """bfloat16: autocast of the forward pass; weights, optimiser and average stay float32."""
    log_every: int = Field(20, gt=0)
    save_every: int = Field(500, gt=0)
    """Steps between checkpoints."""
    sample_every: int = Field(1000, gt=0)
    """Steps between sample grids."""
    keep: int = Field(2, gt=0)
    """How many checkpoints are kept; older ones are removed after a newer one is safe."""


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
            raise RequestError(f"--set {assignment}: there is no field {name!r}; the fields here: {_names(data, path)}")
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


def _names(data: Any, path: list[str]) -> str:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            break
        data = data[part]
    return ", ".join(data) if isinstance(data, dict) else "none"
