"""Alignment: what is right in a picture of shapes, part by part, with its ceiling and with chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin.errors import DataError
from langevin.training.data.alignment import (
    PARTS,
    agreement,
    alignment_figures,
    chance_alignment,
    measure_alignment,
    scene_of,
    shares,
)
from langevin.training.data.shapes import Scene, Thing, draw_scene, make_scene

CIRCLE, SQUARE = Thing("small", "red", "circle"), Thing("large", "blue", "square")
ASKED = Scene((CIRCLE, SQUARE), "left of")


def wrong(seen: Scene | None, asked: Scene = ASKED) -> set[str]:
    return {part for part, right in agreement(asked, seen).items() if not right}


def test_each_part_is_judged_by_itself() -> None:
    assert wrong(ASKED) == wrong(Scene((SQUARE, CIRCLE), "right of")) == set()
    assert wrong(Scene((SQUARE, CIRCLE), "left of")) == {"relation", "everything"}
    assert wrong(Scene((CIRCLE, SQUARE), "above")) == {"relation", "everything"}
    green = CIRCLE._replace(colour="green")
    assert wrong(Scene((green, SQUARE), "left of")) == {"colour", "pairing", "relation", "everything"}
    assert wrong(Scene((CIRCLE._replace(size="large"), SQUARE), "left of")) == {"size", "everything"}
    swapped = Scene((CIRCLE._replace(colour="blue"), SQUARE._replace(colour="red")), "left of")
    assert wrong(swapped) == {"pairing", "relation", "everything"}
    cross = Scene((CIRCLE._replace(shape="cross"), SQUARE), "left of")
    assert wrong(cross) == {"shape", "pairing", "relation", "everything"}
    assert wrong(Scene((CIRCLE,))) == set(PARTS)
    assert wrong(None) == set(PARTS)
    assert "relation" not in agreement(Scene((CIRCLE,)), Scene((CIRCLE,)))
    assert wrong(Scene((CIRCLE,)), Scene((CIRCLE, CIRCLE))) == set(PARTS) - {"relation"}


def test_shares_are_of_the_pictures_that_were_asked_for_the_part() -> None:
    single = Scene((SQUARE,))
    found = shares([ASKED, single, single, ASKED], [ASKED, single, None, Scene((SQUARE, CIRCLE), "left of")])
    assert found.pictures == 4 and found.clear == 0.75
    assert found.shares["relation"] == 0.5 and found.asked["relation"] == 2
    assert found.shares["everything"] == 0.5 and found.shares["shape"] == 0.75 and found.asked["shape"] == 4
    with pytest.raises(DataError, match="1 pictures for 2 scenes"):
        shares([ASKED, single], [None])


def test_drawn_scenes_are_the_ceiling_and_blank_ones_the_bottom() -> None:
    made = [make_scene(0, i, held_out=True) for i in range(40)]
    pictures = [draw_scene(placed) for _, placed in made]
    scenes = [scene for scene, _ in made]
    found = measure_alignment(pictures, scenes)
    assert found.clear == 1 and set(found.shares.values()) == {1.0} and set(found.shares) == set(PARTS)
    shifted = measure_alignment(pictures[1:] + pictures[:1], scenes)
    assert shifted.clear == 1 and shifted.shares["everything"] < 0.2


def test_chance_is_what_scenes_have_in_common_by_their_frequencies() -> None:
    scenes = [make_scene(1, i)[0] for i in range(300)]
    chance = chance_alignment(scenes, seed=0)
    for part, value in (
        ("count", lambda s: len(s.things)),
        ("shape", lambda s: tuple(sorted(t.shape for t in s.things))),
        ("everything", lambda s: s.canonical),
    ):
        counts = Counter(map(value, scenes))
        expected = sum(n * (n - 1) for n in counts.values()) / (300 * 299)
        assert chance.shares[part] == pytest.approx(expected, abs=0.02), part
    assert chance_alignment(scenes, seed=0) == chance
    assert chance_alignment([ASKED, Scene((SQUARE,))], seed=0).shares["everything"] == 0


def as_tensor(index: int, held_out: bool = False) -> tuple[Tensor, dict[str, object]]:
    scene, placed = make_scene(2, index, held_out=held_out)
    record = {
        "caption": scene.caption,
        "things": [thing._asdict() for thing in scene.things],
        "relation": scene.relation,
    }
    return torch.from_numpy(np.array(draw_scene(placed))).permute(2, 0, 1), record


def test_figures_stand_beside_ceiling_and_chance() -> None:
    real, records = zip(*(as_tensor(i) for i in range(30)), strict=True)
    pictures = torch.stack(real)
    half = torch.cat([pictures[:15], torch.full_like(pictures[15:], 255)])
    figures = {f.name.removeprefix("alignment: "): f for f in alignment_figures(half, records, pictures, records)}
    assert set(figures) == {"clear", *PARTS}
    assert figures["clear"].value == figures["everything"].value == 0.5
    for part in PARTS:
        figure = figures[part]
        assert figure.real == 1 and figure.chance is not None and figure.chance < 0.9
        assert figure.generated == (30 if part != "relation" else sum(r["relation"] is not None for r in records))


def test_other_data_has_no_scenes() -> None:
    for record in (
        {"caption": "a cat"},
        {"caption": "x", "things": [{"size": "tiny"}]},
        {"things": [], "relation": None},
    ):
        with pytest.raises(DataError, match="alignment is measured on the shapes data alone"):
            scene_of(record)
    _, record = as_tensor(4)
    assert scene_of(record) == make_scene(2, 4)[0]
