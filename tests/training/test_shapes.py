"""The captioned shapes, and the measurement that judges pictures of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from langevin.training.data import DataConfig, read_data
from langevin.training.data.measuring import Finding, measure_scene
from langevin.training.data.shapes import (
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    Placed,
    Scene,
    Thing,
    coverage,
    draw_scene,
    make_scene,
    write_shapes,
)

CIRCLE = Thing("small", "red", "circle")
SQUARE = Thing("medium", "blue", "square")


def test_captions_say_what_a_scene_is() -> None:
    assert Scene((CIRCLE, SQUARE), "left of").caption == "a small red circle left of a blue square"
    assert Scene((Thing("large", "black", "cross"),) * 2).caption == "two large black crosses"
    assert Scene((SQUARE,)).caption == "a blue square"
    assert Scene((CIRCLE, SQUARE), "right of").canonical == Scene((SQUARE, CIRCLE), "left of")
    assert Scene((CIRCLE, SQUARE), "below").canonical == Scene((SQUARE, CIRCLE), "above")


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    scenes = [make_scene(3, i) for i in range(50)]
    assert scenes == [make_scene(3, i) for i in range(50)]
    assert scenes[::-1] == [make_scene(3, i) for i in reversed(range(50))]
    assert scenes != [make_scene(4, i) for i in range(50)]
    assert draw_scene(scenes[0][1]).tobytes() == draw_scene(make_scene(3, 0)[1]).tobytes()


def test_every_value_occurs_and_held_out_pairs_only_where_they_should() -> None:
    scenes = [make_scene(0, i)[0] for i in range(600)]
    things = [thing for scene in scenes for thing in scene.things]
    pairs = {(t.shape, t.colour) for t in things}
    assert pairs == {(s, c) for s in SHAPES for c in COLOURS} - HELD_OUT and len(HELD_OUT) == 4
    assert {t.size for t in things} == set(SIZES)
    assert {s.relation for s in scenes} == {None, *RELATIONS}
    assert Counter(len(s.things) for s in scenes)[1] > 150 and sum(s.relation is not None for s in scenes) > 150
    for scene in (make_scene(0, i, held_out=True)[0] for i in range(100)):
        assert (scene.things[0].shape, scene.things[0].colour) in HELD_OUT


def test_the_drawing_covers_the_area_of_the_shape() -> None:
    for shape, area in {"circle": np.pi / 4, "square": 1, "triangle": 0.5, "cross": 5 / 9}.items():
        assert coverage(shape, 30.3, 33.1, 12.4, 64, 64).sum() == pytest.approx(area * 24.8**2, rel=0.01)
    edge = coverage("square", 8.0, 8.0, 4.5, 16, 16)
    assert edge[8, 8] == 1 and edge[8, 3] == 0.5 and edge[3, 3] == 0.25 and edge[8, 2] == 0


@pytest.mark.parametrize("held_out", [False, True])
def test_the_measurement_is_right_on_what_was_drawn(held_out: bool) -> None:
    wrong = []
    for index in range(200):
        scene, placed = make_scene(1, index, held_out=held_out)
        measured = measure_scene(draw_scene(placed))
        if measured.scene != scene.canonical:
            wrong.append((index, scene.caption, measured))
    assert not wrong


def test_the_measurement_sees_what_differs() -> None:
    """The same picture with one thing changed is measured as the changed one: it does not guess what was meant."""
    first, second = Placed(CIRCLE, 0.22, 0.5, 0.08), Placed(SQUARE, 0.62, 0.5, 0.135)
    seen = {measure_scene(draw_scene((first, second))).scene}
    changed = [first._replace(thing=CIRCLE._replace(colour=colour)) for colour in COLOURS]
    changed += [first._replace(thing=CIRCLE._replace(shape=shape)) for shape in SHAPES]
    changed += [first._replace(radius=share / 2) for share in SIZES.values()]
    seen |= {measure_scene(draw_scene((other, second))).scene for other in changed}
    for x, y, relation in ((0.62, 0.15, "above"), (0.62, 0.88, "below"), (0.89, 0.5, "right of")):
        scene = Scene((CIRCLE, SQUARE), relation).canonical
        assert measure_scene(draw_scene((first._replace(x=x, y=y), second))).scene == scene
    assert None not in seen and len(seen) == 1 + (len(COLOURS) - 1) + (len(SHAPES) - 1) + (len(SIZES) - 1)


def test_small_faults_of_a_generated_picture_do_no_harm() -> None:
    noise = np.random.default_rng(0)
    for index in range(60):
        scene, placed = make_scene(2, index)
        rough = np.asarray(draw_scene(placed)) + noise.normal(0, 8, (64, 64, 3))
        picture = Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8))
        assert measure_scene(picture).scene == scene.canonical, (index, scene.caption)


def test_softened_pictures_are_measured_right_or_not_at_all() -> None:
    right = 0
    for index in range(100):
        scene, placed = make_scene(2, index)
        soft = draw_scene(placed).filter(ImageFilter.GaussianBlur(0.8))
        measured = measure_scene(soft).scene
        assert measured in (scene.canonical, None), (index, scene.caption, measured)
        right += measured is not None
    assert right >= 90


def test_what_is_no_scene_is_not_taken_for_one() -> None:
    noise = np.random.default_rng(0)
    for _ in range(50):
        random = Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        assert measure_scene(random).finding is Finding.UNCLEAR
        assert measure_scene(random.filter(ImageFilter.GaussianBlur(4))).finding is Finding.UNCLEAR
    assert measure_scene(Image.new("RGB", (64, 64), "white")).finding is Finding.NOTHING
    for other, reason in [
        (Image.new("RGB", (64, 64), COLOURS["red"]), "a square of 1.00"),
        (Image.new("RGB", (64, 64), (128, 128, 128)), "a colour of"),
        (Image.new("RGB", (64, 32), "white"), "64 x 32 pixels"),
        (draw_scene(tuple(Placed(CIRCLE, x, 0.5, 0.08) for x in (0.2, 0.5, 0.8))), "3 things"),
        (draw_scene((Placed(SQUARE, 0.4, 0.5, 0.135), Placed(CIRCLE, 0.55, 0.5, 0.08))), "overlap|not of one colour"),
        (draw_scene((Placed(SQUARE, 0.3, 0.3, 0.1), Placed(CIRCLE, 0.7, 0.7, 0.08))), "neither beside nor above"),
    ]:
        measured = measure_scene(other)
        assert measured.finding is Finding.UNCLEAR and measured.scene is None
        assert any(part in measured.reason for part in reason.split("|")), measured.reason


def test_the_written_shard_is_a_data_set(tmp_path: Path) -> None:
    path = write_shapes(tmp_path / "shapes", 30, seed=5)
    write_shapes(tmp_path / "shapes", 10, seed=5, held_out=True)
    again = write_shapes(tmp_path / "again", 30, seed=5)
    assert path.read_bytes() == again.read_bytes()
    data = read_data(tmp_path / "shapes", DataConfig(size=64, include={"split": ("train",)}))
    assert len(data) == 30 and not data.unreadable
    for index, record in enumerate(data.records):
        scene, placed = make_scene(5, index)
        assert record["caption"] == scene.caption and record["relation"] == scene.relation
        assert record["things"] == [t._asdict() for t in scene.things]
        assert data.pictures[index].permute(1, 2, 0).numpy().tobytes() == draw_scene(placed).tobytes()
