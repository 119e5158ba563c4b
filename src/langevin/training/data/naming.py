"""The colour of a picture as a field of its record, where one colour covers most of it: captions may say it then."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from langevin.evaluation.colours import NAMES, colour_shares
from langevin.training.data.config import ColourConfig

SAID = frozenset({"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"})
"""Colours that are named. Black, grey and white are those of outlines, shadows and paper more often than of things."""
_WORDS = frozenset({*NAMES, "gray", "golden", "silver", "rainbow", "light", "dark"})
"""Where a caption has one of these, it has said enough of its colour."""


def name_colours(
    pictures: Tensor, records: Sequence[Mapping[str, Any]], config: ColourConfig, taken: Collection[str]
) -> list[Mapping[str, Any]]:
    """The records, with the field `colour` where `config` gives them one.

    pictures: uint8 N 3 H W. taken: names of the data set, in lower case: "red apple" is not made of an apple where it
    is the name of another sample, held out or not.
    """
    shares = colour_shares(pictures)
    named = []
    for record, largest, place in zip(records, *shares.max(1), strict=True):
        colour, caption = NAMES[int(place)], str(record["caption"]).lower()
        coloured = (
            float(largest) >= config.least
            and colour in SAID
            and not config.leaves_out(record)
            and not set(re.findall(r"[a-z]+", caption)) & _WORDS
            and f"{colour} {caption}" not in taken
        )
        named.append({**record, "colour": colour} if coloured else record)
    return named
