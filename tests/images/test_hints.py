"""Hints: edges against hand-made cases and scipy's filters, every maker on pictures of every mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageDraw

from langevin.cli.main import run as cli
from langevin.images.hints import HINTS, blurred, canny, line_art, segments, sobel
from langevin.images.pixels import open_picture


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8), "L")


def edges(picture: Image.Image, **options: float) -> np.ndarray:
    pixels = np.asarray(canny(picture, **options))
    assert set(np.unique(pixels)) <= {0, 255} and (pixels == pixels[..., :1]).all()
    return pixels[..., 0] > 0


RANDOM = np.random.default_rng(0).uniform(0, 255, (23, 31, 3))


@pytest.mark.parametrize("deviation", [0.6, 1.0, 2.5])
def test_the_gaussian_is_that_of_scipy(deviation: float) -> None:
    reach = int(np.ceil(4 * deviation))
    ours = blurred(RANDOM, deviation)
    theirs = scipy.ndimage.gaussian_filter(RANDOM, deviation, mode="nearest", axes=(0, 1), radius=reach)
    assert np.abs(ours - theirs).max() < 1e-10
    assert blurred(RANDOM, 0) is RANDOM


def test_the_derivatives_are_those_of_scipy() -> None:
    for ours, axis in zip(sobel(RANDOM), (1, 0), strict=True):
        theirs = np.stack([scipy.ndimage.sobel(RANDOM[..., c], axis, mode="nearest") for c in range(3)], 2)
        assert np.abs(ours - theirs).max() < 1e-10


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("falling", [False, True])
def test_a_step_gives_one_straight_line(turned: bool, falling: bool) -> None:
    values = np.zeros((20, 24))
    values[:, 11:] = 200
    values = 200 - values if falling else values
    found = edges(grey(values.T if turned else values))
    found = found.T if turned else found
    assert (found.sum(1) == 1).all() and np.unique(found.argmax(1)).tolist() in ([10], [11])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_slope_gives_a_thin_line_beside_it(mirrored: bool) -> None:
    rows, columns = np.mgrid[:40, :40]
    values = np.where(columns > rows, 220.0, 20.0)
    found = edges(grey(values[:, ::-1] if mirrored else values))
    found = found[:, ::-1] if mirrored else found
    y, x = np.nonzero(found)
    assert (np.abs(x - y) <= 1).all()
    assert (found[2:-2].sum(1) <= 2).all() and (found[2:-2].sum(1) >= 1).all()


def test_a_circle_is_found_where_it_is() -> None:
    picture = Image.new("L", (480, 480))
    ImageDraw.Draw(picture).ellipse((120, 120, 359, 359), fill=255)
    found = edges(picture.resize((60, 60), Image.Resampling.BOX))  # radius 15 about 29.5, 29.5
    y, x = np.nonzero(found)
    radius, angle = np.hypot(y - 29.5, x - 29.5), np.arctan2(y - 29.5, x - 29.5)
    assert np.abs(radius - 15).max() < 1
    assert np.diff(np.sort(angle)).max() < 2 / 15  # no gap
    blocks = found[:-1, :-1] & found[1:, :-1] & found[:-1, 1:] & found[1:, 1:]
    assert not blocks.any()  # one pixel wide


def test_weak_edges_are_kept_where_they_touch_a_strong_one() -> None:
    values = np.zeros((40, 60))
    values[:20, :20], values[20:, :20] = 40, 90  # one contour along x = 20: weak above, strong below
    values[:, 40:] = 40  # another, weak all along
    picture = grey(values)
    found = edges(picture, low=100, high=200)
    assert found[2:-2, 18:22].any(1).all() and not found[:, 36:].any()
    assert not edges(picture, low=200, high=200)[:15].any()
    assert edges(picture, low=100, high=100)[:, 38:42].any(1).all()


@pytest.mark.parametrize("seed", range(3))
def test_hysteresis_agrees_with_labelled_regions(seed: int) -> None:
    values = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).uniform(0, 255, (48, 56)), 2)
    picture = grey(127 + 5 * (values - values.mean()))
    weak, strong = edges(picture, low=60, high=60), edges(picture, low=160, high=160)
    numbers, _ = scipy.ndimage.label(weak, np.ones((3, 3)))
    assert strong.any() and strong.sum() < weak.sum()
    assert (edges(picture, low=60, high=160) == np.isin(numbers, numbers[strong & weak])).all()


def test_colours_of_equal_brightness_have_an_edge() -> None:
    picture = Image.new("RGB", (20, 20), (0, 128, 0))
    picture.paste((218, 21, 0), (10, 0, 20, 20))
    assert edges(picture).any(1).all()


def test_nothing_is_found_where_nothing_is() -> None:
    flat = Image.new("RGB", (16, 12), (90, 140, 30))
    assert not edges(flat).any()
    assert not np.asarray(line_art(flat)).any()
    assert not edges(flat, low=0.001, high=0.001).any()


def test_lines_are_white_where_the_drawing_is_black() -> None:
    picture = Image.new("L", (40, 40), 255)
    picture.paste(0, (18, 0, 20, 40))
    lines = np.asarray(line_art(picture))[..., 0]
    assert (lines[:, 18:20] == 255).all() and not lines[:, :12].any() and not lines[:, 26:].any()


def test_segments_of_flat_art_are_its_areas_without_seams() -> None:
    colours = [(200, 30, 30), (30, 160, 40), (240, 240, 240)]
    picture = Image.new("RGB", (160, 160), colours[2])
    ImageDraw.Draw(picture).ellipse((10, 10, 90, 90), fill=colours[0])
    ImageDraw.Draw(picture).rectangle((80, 100, 150, 150), fill=colours[1])
    small = picture.resize((40, 40), Image.Resampling.BOX)  # with mixed colours at the edges
    found = np.asarray(segments(small, colours=3)).reshape(-1, 3).astype(int)
    names = {tuple(colour) for colour in found.tolist()}
    assert len(names) == 3
    assert all(min(np.abs(np.subtract(c, name)).max() for name in names) < 12 for c in colours)


MODES = {
    "L": Image.new("L", (9, 7), 50),
    "1": Image.new("1", (9, 7), 1),
    "P": Image.new("P", (9, 7), 3),
    "RGBA": Image.new("RGBA", (9, 7), (10, 20, 30, 40)),
    "I;16": Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000),
    "CMYK": Image.new("CMYK", (9, 7), (1, 2, 3, 4)),
    "one pixel": Image.new("RGB", (1, 1)),
}


@pytest.mark.parametrize("kind", HINTS)
def test_every_maker_takes_every_mode_and_keeps_the_size(kind: str) -> None:
    for picture in MODES.values():
        before = picture.tobytes()
        made = HINTS[kind](picture)
        assert (made.mode, made.size) == ("RGB", picture.size)
        assert HINTS[kind](picture).tobytes() == made.tobytes() and picture.tobytes() == before


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.new("RGB", (24, 16), "white")
    picture.paste("red", (6, 4, 14, 12))
    picture.save(tmp_path / "a.png")
    for kind in HINTS:
        assert cli(["hint", kind, str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]) == 0
        assert open_picture(tmp_path / "b.png").tobytes() == HINTS[kind](picture).tobytes()
    strict = ["--low", "2000", "--high", "2000"]
    assert cli(["hint", "canny", str(tmp_path / "a.png"), "-o", str(tmp_path / "c.png"), *strict]) == 0
    assert not np.asarray(open_picture(tmp_path / "c.png")).any()
    for words, said in (
        (["hint", "depth", "a.png", "-o", "x.png"], "hint 'depth' is unknown; choose one of canny, blur,"),
        (["hint", "blur", "a.png", "-o", "x.png", "--low", "3"], "--low has no meaning for hint blur"),
        (["hint", "blur", str(tmp_path / "no.png"), "-o", "x.png"], "no.png does not exist"),
        (["hint", "blur", str(tmp_path / "a.png"), "-o", str(tmp_path / "no" / "x.png")], "cannot write"),
    ):
        capsys.readouterr()
        assert cli(words) == 2
        assert said in capsys.readouterr().err
    assert cli(["hint", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in HINTS)
