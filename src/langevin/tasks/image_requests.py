"""The options of the tasks that change a picture. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from langevin.errors import RequestError
from langevin.tasks.options import FromList, Shown
from langevin.tasks.request import SIZES, GenerateRequest

LEAST_STRENGTH = 0.01

Coordinate = Annotated[int, Field(ge=0, le=2**20)]
Margin = Annotated[int, Field(ge=0, le=SIZES[1])]


class ImageToImageRequest(GenerateRequest):
    """Pictures from a picture and a text. `width` and `height` are the picture's unless they are given."""

    strength: float = Field(
        0.6,
        ge=LEAST_STRENGTH,
        le=1,
        description="Share of the run that is done, from the picture noised as far: 1 keeps hardly anything of it.",
    )


class RepaintRequest(GenerateRequest):
    """What inpainting and outpainting have in common. `width` and `height` are those that the model works at."""

    strength: float = Field(
        1.0,
        ge=LEAST_STRENGTH,
        le=1,
        description="Share of the run that is done; below 1 what is repainted begins as what was there.",
    )
    feather: int = Field(
        0, ge=0, le=256, description="Pixels inside the mask's border over which new and old are blended."
    )
    resample: int = Field(
        1,
        ge=1,
        le=100,
        description="RePaint (Lugmayr et al. 2022): how often each part of the run is done; so many times the calls.",
    )
    jump: int = Field(5, ge=1, le=1000, description="With resample: steps of such a part.")

    @model_validator(mode="after")
    def _resamples(self) -> Self:
        if self.resample > 1 and self.compat != "langevin":
            raise RequestError(f"resample {self.resample} cannot go with compat {self.compat!r}, which has no RePaint")
        return self


class InpaintRequest(RepaintRequest):
    """A picture with a part of it painted anew."""

    box: Annotated[tuple[Coordinate, Coordinate, Coordinate, Coordinate], FromList] | None = Field(
        None, description="Repaint a rectangle: LEFT,TOP,RIGHT,BOTTOM in pixels."
    )
    polygon: Annotated[tuple[Coordinate, ...], Field(min_length=6, max_length=10_000), FromList] | None = Field(
        None, description="Repaint a polygon: X,Y of each corner in pixels."
    )
    alpha: bool = Field(False, description="Repaint what is transparent.")
    invert: bool = Field(False, description="Repaint what the mask leaves out instead.")
    grow: int = Field(0, ge=-256, le=256, description="Pixels by which the mask grows, or shrinks below 0.")
    soft: bool = Field(
        False,
        description="Grey in the mask is the share of the run in which a place changes (differential diffusion).",
    )
    only_masked: bool = Field(
        False, description="Work on the masked area alone, at the model's size, and paste it back."
    )
    padding: int = Field(32, ge=0, le=4096, description="With only_masked: pixels around the mask that are seen too.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.polygon is not None and len(self.polygon) % 2:
            raise RequestError(f"polygon has {len(self.polygon)} numbers: give X,Y of each corner")
        if self.soft and self.compat != "langevin":
            raise RequestError(f"soft masks cannot go with compat {self.compat!r}, which has none")
        return self


class OutpaintRequest(RepaintRequest):
    """A larger picture with the old one in it."""

    strength: float = Field(
        0.9,
        ge=LEAST_STRENGTH,
        le=1,
        description="Share of the run that is done; below 1 what is new begins as the old edges, continued.",
    )
    feather: int = Field(
        4, ge=0, le=256, description="Pixels beyond the old edges over which these, extended, and the new are blended."
    )
    left: Margin = Field(0, description="New pixels on the left.")
    right: Margin = Field(0, description="New pixels on the right.")
    top: Margin = Field(0, description="New pixels above.")
    bottom: Margin = Field(0, description="New pixels below.")
    factor: Annotated[Annotated[float, Field(gt=1, le=8)] | None, Shown("none")] = Field(
        None, description="Instead: how many times as wide and high, with the picture in the middle."
    )
    fill: Literal["edge", "reflect"] = Field(
        "edge",
        description="What lies under the new parts first: the edges extended, or the picture reflected; blurred.",
    )

    @model_validator(mode="after")
    def _extends(self) -> Self:
        sides = self.left or self.right or self.top or self.bottom
        if self.factor is None and not sides:
            raise RequestError("nothing to add: give left, right, top or bottom in pixels, or factor")
        if self.factor is not None and sides:
            raise RequestError("factor cannot go with left, right, top or bottom: give one or the other")
        return self

    def margins(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Pixels added to a picture: left, top, right, bottom."""
        if self.factor is None:
            return self.left, self.top, self.right, self.bottom
        across, down = (round(side * (self.factor - 1)) for side in (width, height))
        return across // 2, down // 2, across - across // 2, down - down // 2
