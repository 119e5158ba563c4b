"""Whether pictures of shapes show what their captions say: shares of them, measured from pixels."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from langevin.errors import DataError
from langevin.evaluation.figures import Figure
from langevin.images.pixels import to_pictures
from langevin.training.data.measuring import measure_scene
from langevin.training.data.shapes import COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing
from langevin.training.randomness import seed_for

PARTS = ("count", "shape", "colour", "size", "pairing", "relation", "everything")
"""What is looked at, in the order of the tables: see `agreement`."""

_SHUFFLES = 20


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Shares of pictures in [0, 1] by part of what was asked for."""

    pictures: int
    shares: Mapping[str, float]
    """Of the pictures of which the part could be asked for: `relation` of those with one."""
    asked: Mapping[str, int]
    """How many pictures those are."""
    clear: float
    """Share of the pictures in which a scene could be made out at all; the others count as wrong in every part."""


def scene_of(record: Mapping[str, Any]) -> Scene:
    """The scene that a record of the shapes data tells of. Raises DataError for a record of other data."""
    things = record.get("things")
    relation = record.get("relation")
    known = isinstance(things, list) and 1 <= len(things) <= 2 and relation in (None, *RELATIONS)
    if not known or not all(isinstance(t, dict) and _is_thing(t) for t in things or ()):
        raise DataError(
            f"alignment is measured on the shapes data alone: the record of {str(record.get('caption'))[:40]!r} has no "
            "`things` and `relation` that langevin.training.data.shapes would write"
        )
    return Scene(tuple(Thing(t["size"], t["colour"], t["shape"]) for t in things or ()), relation)


def _is_thing(value: Mapping[str, Any]) -> bool:
    return value.get("size") in SIZES and value.get("colour") in COLOURS and value.get("shape") in SHAPES


def agreement(asked: Scene, seen: Scene | None) -> dict[str, bool]:
    """Which parts of a scene are right.

    `count`: as many things. `shape`, `colour`, `size`: the same ones, in whatever thing. `pairing`: the same pairs of
    shape and colour. `relation`: the right pairs on the right sides of each other; only of scenes that have a
    relation. `everything`: the very scene.
    """
    wanted = asked.canonical
    parts = [p for p in PARTS if p != "relation" or asked.relation is not None]
    if seen is None:
        return dict.fromkeys(parts, False)
    mine, theirs = wanted.things, seen.canonical.things
    found = {
        "count": len(mine) == len(theirs),
        "shape": Counter(t.shape for t in mine) == Counter(t.shape for t in theirs),
        "colour": Counter(t.colour for t in mine) == Counter(t.colour for t in theirs),
        "size": Counter(t.size for t in mine) == Counter(t.size for t in theirs),
        "pairing": Counter((t.colour, t.shape) for t in mine) == Counter((t.colour, t.shape) for t in theirs),
        "relation": wanted.relation == seen.canonical.relation
        and [(t.colour, t.shape) for t in mine] == [(t.colour, t.shape) for t in theirs],
        "everything": wanted == seen.canonical,
    }
    return {part: found[part] for part in parts}


def measure_alignment(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> Alignment:
    """How much of each scene its picture shows. Raises DataError where there are no pictures, or not one a scene."""
    return shares(scenes, [measure_scene(picture).scene for picture in pictures])


def shares(asked: Sequence[Scene], seen: Sequence[Scene | None]) -> Alignment:
    """`measure_alignment` of what was measured already: None where no scene could be made out."""
    if len(asked) != len(seen) or not asked:
        raise DataError(f"{len(seen)} pictures for {len(asked)} scenes: alignment needs one each, and at least one")
    right, total = Counter[str](), Counter[str]()
    for scene, found in zip(asked, seen, strict=True):
        for part, is_right in agreement(scene, found).items():
            right[part] += is_right
            total[part] += 1
    return Alignment(
        pictures=len(asked),
        shares={part: right[part] / total[part] for part in PARTS if total[part]},
        asked={part: total[part] for part in PARTS if total[part]},
        clear=sum(found is not None for found in seen) / len(seen),
    )


def chance_alignment(scenes: Sequence[Scene], seed: int) -> Alignment:
    """What perfect pictures get that heed no caption: the scenes measured against one another.

    The mean of 20 random orders in which each scene meets another's place.
    """
    found = []
    for k in range(_SHUFFLES):
        order = list(range(len(scenes)))
        random.Random(seed_for(seed, "alignment", k)).shuffle(order)
        # Along a random cycle, no scene meets itself where there are two or more.
        found.append(shares([scenes[i] for i in order], [scenes[i] for i in (*order[1:], order[0])]))
    parts = found[0].shares
    mean = {part: sum(one.shares[part] for one in found) / len(found) for part in parts}
    return Alignment(pictures=len(scenes), shares=mean, asked=found[0].asked, clear=1.0)


def alignment_figures(
    generated: Tensor,
    records: Sequence[Mapping[str, Any]],
    real: Tensor,
    real_records: Sequence[Mapping[str, Any]],
    seed: int = 0,
) -> list[Figure]:
    """A figure for each part of `agreement`, with the same measure on real pictures of their own records as the
    ceiling, and what perfect pictures that heed no caption would get as chance.

    generated, real: uint8 N 3 S S with 32 <= S <= 256, each for the record of its place. Raises DataError for
    records that tell of no scene.
    """
    scenes = [scene_of(record) for record in records]
    found = measure_alignment(_pictures(generated), scenes)
    best = measure_alignment(_pictures(real), [scene_of(record) for record in real_records])
    chance = chance_alignment(scenes, seed)
    figures = [
        Figure(
            name=f"alignment: {part}",
            value=share,
            better="higher",
            real=best.shares.get(part),
            chance=chance.shares[part] if len(scenes) > 1 else None,
            generated=found.asked[part],
            reference=best.asked.get(part, 0),
            seed=seed,
        )
        for part, share in found.shares.items()
    ]
    clear = Figure(
        name="alignment: clear",
        value=found.clear,
        better="higher",
        real=best.clear,
        generated=found.pictures,
        reference=best.pictures,
        seed=seed,
    )
    return [clear, *figures]


def _pictures(images: Tensor) -> list[Image.Image]:
    return to_pictures(images.float() / 127.5 - 1)
