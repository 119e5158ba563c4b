"""Everything about a model that its weights do not say, and its form as JSON in our own files."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import CheckpointError
from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.clip import ClipTextConfig
from langevin.networks.unet import UNetConfig

CONFIG_KEY = "langevin.config"
TOKENIZER_KEY = "langevin.tokenizer"
FORMAT = 1
"""Version of the JSON; a reader refuses any other."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A noise schedule by the rule that made it."""

    kind: Literal["scaled_linear", "linear", "cosine", "sigmoid", "geometric", "betas"] = "scaled_linear"
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    betas: tuple[float, ...] | None = None
    """With kind "betas" alone: the table itself."""
    zero_terminal_snr: bool = False
    """Rescaled so that the last step is pure noise."""

    def make(self) -> NoiseSchedule:
        """ValueError where the numbers make no schedule."""
        if (self.betas is None) == (self.kind == "betas"):
            raise ValueError(f"schedule {self.kind!r} with{'out' if self.betas is None else ''} a table of betas")
        if not 2 <= self.steps <= 100_000:
            raise ValueError(f"a schedule of {self.steps} steps: between 2 and 100000 are possible")
        match self.kind:
            case "scaled_linear":
                schedule = NoiseSchedule.scaled_linear(self.steps, self.beta_start, self.beta_end)
            case "linear":
                schedule = NoiseSchedule.linear(self.steps, self.beta_start, self.beta_end)
            case "cosine":
                schedule = NoiseSchedule.cosine(self.steps)
            case "sigmoid":
                schedule = NoiseSchedule.sigmoid(self.steps)
            case "geometric":
                schedule = NoiseSchedule.geometric(self.steps)
            case "betas":
                schedule = NoiseSchedule.from_betas(torch.tensor(self.betas, dtype=torch.float64))
        return schedule.rescaled_zero_terminal_snr() if self.zero_terminal_snr else schedule

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> ScheduleConfig:
        """The rule that gives just this schedule among the usual ones, else its table."""
        for known in KNOWN_SCHEDULES:
            made = known.make()
            if len(made) == len(schedule) and torch.equal(made.sigmas, schedule.sigmas):
                return known
        return cls(kind="betas", steps=len(schedule), betas=tuple(schedule.betas.tolist()))


STABLE_DIFFUSION = ScheduleConfig()
UPSCALER = ScheduleConfig(beta_start=1e-4, beta_end=0.02)
KNOWN_SCHEDULES = (
    STABLE_DIFFUSION,
    UPSCALER,
    dataclasses.replace(STABLE_DIFFUSION, zero_terminal_snr=True),
    ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02),
    ScheduleConfig(kind="cosine"),
    ScheduleConfig(kind="cosine", zero_terminal_snr=True),
    ScheduleConfig(kind="geometric"),
)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What to ask of the model when the user does not say."""

    width: int = 512
    height: int = 512
    steps: int = 30
    guidance: float = 7.5
    sampler: str | None = None
    """A name in `langevin.diffusion.samplers.SAMPLERS`, for a model that is made for one; None: any will do."""

    def __post_init__(self) -> None:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r} is none of {', '.join(SAMPLERS)}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model but for its weights and tokenizer."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig | None = None
    text: ClipTextConfig | None = None
    text_layer: int = -1
    """Whose layer's states are the context: -1 the last, -2 the last but one."""
    control: UNetConfig | None = None
    hint_channels: int = 3
    schedule: ScheduleConfig = STABLE_DIFFUSION
    prediction: Prediction | None = None
    """None: nothing says."""
    learned_variance: bool = False
    sigma_data: float = 0.5
    scale_factor: float = 0.18215
    defaults: Defaults = Defaults()
    classes: tuple[str, ...] = ()
    """Names of the U-Net's classes, by label. One embedding more than these is that of no class, for guidance."""

    def to_json(self) -> str:
        """The text that our single files carry as metadata."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, label: str) -> ModelConfig:
        """CheckpointError, naming the field, for anything but what `to_json` writes."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{label}: {CONFIG_KEY} is not JSON: {str(error)[:120]}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise CheckpointError(f"{label}: {CONFIG_KEY} is not of format {FORMAT}; a newer langevin may read it")
        return strict(cls, data, f"{label}: {CONFIG_KEY}")


def strict(cls: type[T], data: Any, where: str) -> T:
    """A (nested) dataclass from JSON data: unknown fields, wrong types and impossible values are CheckpointErrors."""
    _refuse_unknown(cls, data, where)
    try:
        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or cls.__name__
        raise CheckpointError(f"{where}: {field} = {str(first.get('input'))[:60]}: {first['msg'][:200]}") from None


def _refuse_unknown(cls: type, data: Any, where: str) -> None:
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: {str(data)[:60]!r} where fields are expected")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise CheckpointError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(fields)}")
    for name, inner in _NESTED.items() if cls is ModelConfig else ():
        if data.get(name) is not None:
            _refuse_unknown(inner, data[name], f"{where}: {name}")


_NESTED: dict[str, type] = {  # of ModelConfig
    "unet": UNetConfig,
    "autoencoder": AutoencoderConfig,
    "text": ClipTextConfig,
    "control": UNetConfig,
    "schedule": ScheduleConfig,
    "defaults": Defaults,
}
