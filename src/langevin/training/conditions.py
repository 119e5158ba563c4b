"""Which pictures a denoiser is conditioned on, as a recipe says it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.autoencoder import Autoencoder
from langevin.training.config import Config
from langevin.training.data import PictureSet
from langevin.training.data.maps import class_maps, depth_maps
from langevin.training.objectives.beside import Beside, Hidden, LowResolution, Mapped


class Kind(StrEnum):
    """What stands in the further input channels."""

    INPAINTING = "inpainting"
    """A mask and the latents of what it leaves: 1 + 4 channels."""
    DEPTH = "depth"
    """How near each place is: 1 channel."""
    SEMANTIC = "semantic"
    """The share of each class: a channel for each."""
    LOW_RESOLUTION = "low_resolution"
    """The picture itself, small and noised: 3 channels, and the noise level as label."""


class Inpainting(Config):
    """Further channels: the mask, 1 where the picture is to be made, then the masked picture's latents."""

    kind: Literal[Kind.INPAINTING] = Kind.INPAINTING
    whole_share: float = Field(0.25, ge=0, le=1)
    """How often everything is hidden. The rest is boxes and strokes alike: see `langevin.training.masks`."""


class Depth(Config):
    """One further channel, from -1 (far) to 1 (near) within each picture."""

    kind: Literal[Kind.DEPTH] = Kind.DEPTH
    maps: Path | None = None
    """A folder with a grey picture for each of the data's, of the same name; larger is nearer. null: drawn shapes."""


class Semantic(Config):
    """As many further channels as there are classes: which share of the cell each covers, from 0 to 1."""

    kind: Literal[Kind.SEMANTIC] = Kind.SEMANTIC
    classes: int = Field(ge=2, le=256)
    maps: Path | None = None
    """A folder with a map for each of the data's pictures, of the same name. null: drawn shapes, which have
    five classes."""
    palette: tuple[str, ...] = ()
    """The classes' colours in maps of colours, "#rrggbb". Empty: the maps' pixels are the classes' numbers."""

    @model_validator(mode="after")
    def _fits(self) -> Semantic:
        if self.palette and len(self.palette) != self.classes:
            raise ValueError(f"palette has {len(self.palette)} colours for {self.classes} classes")
        if self.palette and self.maps is None:
            raise ValueError("palette is for the maps in a folder: give maps")
        return self


class LowRes(Config):
    """Three further channels: the picture at a low resolution, noised, and the noise level as label."""

    kind: Literal[Kind.LOW_RESOLUTION] = Kind.LOW_RESOLUTION
    size: int = Field(ge=1)
    """Width and height of the small picture in pixels: a divisor of data.size."""
    largest_level: int = Field(350, ge=0)
    """The last timestep of the schedule that it is noised to. Levels are drawn uniformly from 0."""


Condition = Annotated[Inpainting | Depth | Semantic | LowRes, Field(discriminator="kind")]


def further_channels(condition: Condition, latent: int) -> int:
    """Input channels of the network beyond those of the noised data. latent: channels of the latents."""
    match condition:
        case Inpainting():
            return 1 + latent
        case Depth():
            return 1
        case Semantic():
            return condition.classes
        case LowRes():
            return 3
        case _:
            assert_never(condition)


def needed_labels(condition: Condition, schedule: NoiseSchedule) -> int | None:
    """What the network's `num_classes` must be: a row for each timestep where noise levels are labels."""
    match condition:
        case LowRes():
            return len(schedule)
        case Inpainting() | Depth() | Semantic():
            return None
        case _:
            assert_never(condition)


def check_condition(condition: Condition, size: int, latent: int, schedule: NoiseSchedule) -> None:
    """ValueError where a condition does not fit pictures of `size` pixels, or its file would be taken for another's."""
    match condition:
        case LowRes():
            if size % condition.size or condition.size == size:
                raise ValueError(f"condition.size {condition.size} is not a proper divisor of data.size {size}")
            if condition.largest_level >= len(schedule):
                raise ValueError(
                    f"condition.largest_level {condition.largest_level}: the schedule ends at {len(schedule) - 1}"
                )
        case Semantic():
            if condition.classes == latent + 1:
                raise ValueError(
                    f"condition.classes {condition.classes}: a model with {latent} + {condition.classes} channels is "
                    "read as one for inpainting; add a class that does not occur"
                )
        case Inpainting() | Depth():
            pass
        case _:
            assert_never(condition)


def make_beside(
    condition: Condition,
    data: PictureSet,
    autoencoder: Autoencoder | None,
    grid: int,
    schedule: NoiseSchedule,
    *,
    seed: int,
) -> Beside:
    """The channels for each of `data`'s pictures at the size of the network's input, `grid`.

    Raises DataError where maps are missing or cannot be read, ValueError for inpainting without an autoencoder.
    """
    match condition:
        case Inpainting():
            if autoencoder is None:
                raise ValueError("inpainting in the channels needs an autoencoder")
            return Hidden(data, seed, autoencoder, condition.whole_share)
        case Depth():
            return Mapped(data, seed, depth_maps(data, condition.maps, grid), {"kind": Kind.DEPTH.value})
        case Semantic():
            maps = class_maps(data, condition.maps, grid, condition.classes, condition.palette)
            return Mapped(data, seed, maps, {"kind": Kind.SEMANTIC.value, "classes": condition.classes})
        case LowRes():
            return LowResolution(data, seed, condition.size, grid, schedule, condition.largest_level)
        case _:
            assert_never(condition)
