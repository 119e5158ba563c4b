"""The options of the tasks that a picture steers: ControlNets, T2I-Adapters, maps. Does not import torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from langevin.errors import RequestError
from langevin.tasks.image_requests import LEAST_STRENGTH
from langevin.tasks.options import FromList, Options, Shown, show
from langevin.tasks.request import GenerateRequest

READY = "hint"
"""The kind of a picture that is a hint already."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_WINDOW = re.compile(rf"({_NUMBER})-({_NUMBER})")


class ControlOptions(Options):
    """How one hint steers."""

    kind: str = Field(READY, description=f"What makes the hint of the picture; {READY}: it is one already.")
    strength: float = Field(1.0, ge=0, le=10, description="Of the control: 1 is as it was trained, 0 is none.")
    start: float = Field(0.0, ge=0, le=1, description="Share of the run after which it begins to act.")
    end: float = Field(1.0, ge=0, le=1, description="Share of the run after which it acts no more.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.end:
            raise RequestError(f"a control from {self.start:g} to {self.end:g} acts nowhere: give START below END")
        return self


def _built(value: Any) -> Any:
    """From a manifest: the options as JSON has them."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(ControlOptions(**item) if isinstance(item, dict) else item for item in value)


class SteeredRequest(GenerateRequest):
    """Pictures from a text and something that says where, if wanted from a picture too."""

    strength: float = Field(
        0.8,
        ge=LEAST_STRENGTH,
        le=1,
        description="With a picture to begin from: share of the run that is done, from the picture noised as far.",
    )


class ControlRequest(SteeredRequest):
    """Pictures from a text, steered by hints."""

    controls: Annotated[tuple[ControlOptions, ...], BeforeValidator(_built), Shown(written=False)] = Field(
        (), description="How each hint steers, in their order. None: as it was trained, over the whole run."
    )
    image_strengths: Annotated[tuple[Annotated[float, Field(ge=0, le=10)], ...], FromList, Shown(written=False)] = (
        Field(
            (),
            description="Of each picture that is a prompt, in order. None: as the IP-Adapters were trained.",
        )
    )
    guess: bool = Field(
        False, description="Guess mode: ControlNets act with the prompt alone, and less at the finer stages."
    )


class DepthRequest(SteeredRequest):
    """Pictures from a text and a depth map."""


class SemanticRequest(SteeredRequest):
    """Pictures from a text and a map of classes."""

    palette: Annotated[tuple[str, ...], Shown("the pixels are the classes' numbers"), FromList] = Field(
        (), description="The classes' colours in a map of colours, once for each: #rrggbb or a name, class 0 first."
    )


def split_control(text: str) -> tuple[ControlOptions, str]:
    """`KIND=PICTURE`, `KIND=PICTURE:STRENGTH` or `KIND=PICTURE:STRENGTH:START-END`: how it steers, and the picture's
    path. RequestError for anything else."""
    kind, equals, path = text.partition("=")
    if not (kind and equals and path):
        raise RequestError(
            f"control {show(text)} is not KIND=PICTURE: give for one {READY}=FILE:0.8, or canny=FILE:0.8:0-0.5"
        )
    values: dict[str, float] = {}
    before, colon, last = path.rpartition(":")
    if before and (window := _WINDOW.fullmatch(last)):
        values = {"start": float(window[1]), "end": float(window[2])}
        path = before
        before, colon, last = path.rpartition(":")
    if before and colon and re.fullmatch(_NUMBER, last):
        values["strength"] = float(last)
        path = before
    elif values:
        raise RequestError(f"control {show(text)} has no strength: give KIND=PICTURE:STRENGTH:START-END")
    return ControlOptions(kind=kind, **values), path


def split_strength(text: str) -> tuple[str, float]:
    """`PICTURE` or `PICTURE:STRENGTH`: the picture's path, and 1 where there is no strength."""
    path, colon, last = text.rpartition(":")
    return (path, float(last)) if path and colon and re.fullmatch(_NUMBER, last) else (text, 1.0)
