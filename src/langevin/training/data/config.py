"""Which pictures are wanted, and how they become squares of one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from langevin.training.config import Config
from langevin.training.data.fitting import Fit


class DataConfig(Config):
    """Which samples of a data set are used, and at what size."""

    size: int = Field(64, ge=8, le=1024)
    """Width and height in pixels; pictures are resized by area averaging (`PIL.Image.BOX`) when that divides evenly,
    else by Lanczos."""
    fit: Fit = Fit.STRETCH
    """What is done with a picture that is not square: see `Fit`."""
    include: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Keep a sample only if each of these fields of its record has one of the values. An integer, such as a label, is
    compared by its decimal digits."""
    exclude: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Leave a sample out if one of these fields has one of the values."""

    def wants(self, record: Mapping[str, Any]) -> bool:
        return all(_said(record.get(k)) in v for k, v in self.include.items()) and not any(
            _said(record.get(k)) in v for k, v in self.exclude.items()
        )


def _said(value: Any) -> Any:
    return str(value) if type(value) is int else value
