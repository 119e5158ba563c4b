"""What to ask of a model that a LoRA was put into, where the LoRA was made for it: a metadata entry of our own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from langevin.checkpoints.config import strict
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.diffusion.samplers import SAMPLERS
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle

DEFAULTS_KEY = "langevin.defaults"


@dataclass(frozen=True, kw_only=True)
class LoraDefaults:
    """They take the place of the model's own defaults."""

    sampler: str
    """A name in `langevin.diffusion.samplers.SAMPLERS`."""
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r} is none of {', '.join(SAMPLERS)}")

    def metadata(self) -> dict[str, str]:
        """The entry."""
        return {DEFAULTS_KEY: json.dumps(dataclasses.asdict(self), separators=(",", ":"))}


def with_defaults(bundle: ModelBundle, stated: LoraDefaults) -> ModelBundle:
    """The model with these in the place of its own."""
    info = dataclasses.replace(
        bundle.info,
        default_sampler=stated.sampler,
        default_steps=stated.steps,
        default_guidance=stated.guidance,
    )
    return dataclasses.replace(bundle, info=info)


def lora_defaults(path: Path) -> LoraDefaults | None:
    """Those that a LoRA file states; None for most. CheckpointError for an entry that is damaged."""
    text = SafetensorsFile(path).metadata.get(DEFAULTS_KEY)
    if text is None:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {DEFAULTS_KEY} is not JSON: {str(error)[:120]}") from None
    return strict(LoraDefaults, data, f"{path}: {DEFAULTS_KEY}")
