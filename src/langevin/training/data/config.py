"""Which pictures are wanted, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from langevin.training.config import Config
from langevin.training.data.buckets import BucketConfig
from langevin.training.data.fitting import Fit

HELD_OUT: Mapping[str, tuple[str, ...]] = {"split": ("val", "test", "held-out")}
"""Samples by which models are judged, as data sets call them."""


class ColourConfig(Config):
    """Which records get the field `colour`, measured from their pictures."""

    least: float = Field(0.6, gt=0, le=1)
    """The share of what is drawn that one colour covers at least."""
    exclude: dict[str, tuple[str, ...]] = Field(default_factory=lambda: dict(HELD_OUT))
    """Samples that get none: those of which one of these fields has one of the values."""

    def leaves_out(self, record: Mapping[str, Any]) -> bool:
        return any(_said(record.get(k)) in v for k, v in self.exclude.items())


class SceneConfig(Config):
    """Scenes of shapes that are drawn beside the data's pictures: "two red circles", "a green cross above a square"."""

    share: float = Field(gt=0, le=0.9)
    """Of all samples, scenes included."""
    seed: int = Field(0, ge=0)


class DataConfig(Config):
    """Which samples of a data set are used, and at what size."""

    size: int = Field(64, ge=8, le=1024)
    """Width and height in pixels; pictures are resized by area averaging (`PIL.Image.BOX`) when that divides evenly,
    else by Lanczos. With buckets: of the square among them."""
    fit: Fit = Fit.STRETCH
    """What is done with a picture that has not the proportions of its size: see `Fit`."""
    buckets: BucketConfig | None = None
    """Further sizes of the same area for pictures that are not square. None: all become squares."""
    flip: float = Field(0.0, ge=0, le=1)
    """How often a picture is seen mirrored, left for right; never where its captions or keywords speak of a side."""
    include: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Keep a sample only if each of these fields of its record has one of the values. An integer, such as a label, is
    compared by its decimal digits."""
    exclude: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Leave a sample out if one of these fields has one of the values."""
    repeat: dict[str, dict[str, Annotated[int, Field(ge=1, le=1000)]]] = Field(default_factory=dict)
    """How often an epoch shows a sample, by the value of a field: {"group": {"Smileys & Emotion": 4}}. Once, where
    nothing is said of its value; of several fields the product. Each time its caption and noise are others."""

    colours: ColourConfig | None = None
    """Measure the colours of the pictures, for `captions.colour_share`."""
    scenes: SceneConfig | None = None
    """Add scenes of the captioned shapes, on white, whatever `include` and `exclude` say. Their records have the style
    "shapes" and the split "train"."""

    @model_validator(mode="after")
    def _on_the_grid(self) -> DataConfig:
        if self.buckets is not None and self.size % self.buckets.grid:
            raise ValueError(f"size {self.size} is not a multiple of buckets.grid {self.buckets.grid}")
        return self

    def wants(self, record: Mapping[str, Any]) -> bool:
        return all(_said(record.get(k)) in v for k, v in self.include.items()) and not any(
            _said(record.get(k)) in v for k, v in self.exclude.items()
        )

    def times(self, record: Mapping[str, Any]) -> int:
        """How often an epoch shows a sample."""
        return math.prod(counts.get(str(_said(record.get(field))), 1) for field, counts in self.repeat.items())


def _said(value: Any) -> Any:
    return str(value) if type(value) is int else value
