"""Colours, numbers and styles, measured on pictures that are drawn for it."""

from __future__ import annotations

import colorsys

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from langevin.errors import DataError
from langevin.evaluation.attribute_prompts import (
    COLOURS,
    article,
    attribute_prompts,
    coloured_names,
    plain_names,
    plural,
)
from langevin.evaluation.colours import NAMES, colour_shares, oklch, shows
from langevin.evaluation.counting import count_things, side_by_side
from langevin.evaluation.linear_probe import LinearProbe, style_statistics
from langevin.images.pixels import to_tensor

PAINTS = {
    "red": "#dd2e44", "orange": "#f4900c", "yellow": "#fdcb58", "green": "#78b159", "blue": "#55acee",
    "purple": "#aa8ed6", "pink": "#f4abba", "brown": "#c1694f", "black": "#31373d", "grey": "#99aab5",
}  # fmt: skip
"""Nine of a well-known set of emoji and a grey: seen by the thresholds' maker, but drawn here as discs."""


def drawn(*discs: tuple[float, float, float, str], size: int = 64) -> Tensor:
    """uint8 1 3 S S: discs (x, y, radius as shares, colour) on white."""
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, r, colour in discs:
        draw.ellipse([(x - r) * size, (y - r) * size, (x + r) * size, (y + r) * size], fill=colour)
    return ((to_tensor(picture) + 1) * 127.5).round().to(torch.uint8)


def test_oklch_of_the_primaries_is_the_published_one() -> None:
    pixels = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    found = oklch(pixels.view(4, 3, 1, 1)).flatten(1)
    expected = torch.tensor([[0.628, 0.2577, 29.23], [0.8664, 0.2948, 142.5], [0.452, 0.3132, 264.05]])
    assert torch.allclose(found[:3], expected, atol=0.01)
    assert found[3, 0] == pytest.approx(1, abs=1e-3) and found[3, 1] < 1e-3


@pytest.mark.parametrize("name", PAINTS)
def test_a_disc_has_the_colour_that_it_is_painted(name: str) -> None:
    shares = colour_shares(drawn((0.5, 0.5, 0.4, PAINTS[name])))[0]
    assert NAMES[int(shares.argmax())] == name and shares.max() > 0.95


def test_every_strong_hue_has_a_name_and_few_borders() -> None:
    """Once round the circle the names come in the order of the rainbow, each in one piece."""
    wheel = [colorsys.hsv_to_rgb(i / 360, 0.9, 0.95) for i in range(360)]
    pixels = (torch.tensor(wheel) * 255).round().to(torch.uint8).view(360, 3, 1, 1)
    names = [NAMES[int(row.argmax())] for row in colour_shares(pixels)]
    pieces = [name for i, name in enumerate(names) if name != names[i - 1]]
    assert len(pieces) == len(set(pieces)) == 7


def test_shares_are_those_of_the_ink_and_white_is_background() -> None:
    both = drawn((0.25, 0.5, 0.2, PAINTS["red"]), (0.75, 0.5, 0.2, PAINTS["blue"]))
    shares = colour_shares(both)[0]
    assert shares[NAMES.index("red")] == pytest.approx(0.5, abs=0.03) and float(shares.sum()) == pytest.approx(1)
    assert shows(both.repeat(3, 1, 1, 1), ["red", "blue", "green"]).tolist() == [True, True, False]
    assert colour_shares(drawn()).sum() == 0
    with pytest.raises(DataError, match="uint8 N 3 H W"):
        colour_shares(torch.zeros(1, 3, 8, 8))


def test_separate_things_are_counted_and_sparks_are_not() -> None:
    one = drawn((0.5, 0.5, 0.3, "red"))
    assert count_things(one).tolist() == [1]
    assert count_things(side_by_side(one)).tolist() == [2]
    touching = drawn((0.35, 0.5, 0.2, "red"), (0.65, 0.5, 0.2, "red"))
    spark = drawn((0.4, 0.5, 0.3, "red"), (0.9, 0.1, 0.05, "yellow"))
    three = drawn((0.2, 0.2, 0.15, "red"), (0.8, 0.2, 0.15, "black"), (0.5, 0.8, 0.15, "blue"))
    assert count_things(torch.cat([touching, spark, three, drawn()])).tolist() == [1, 1, 3, 0]
    with pytest.raises(DataError, match="multiples of 4"):
        side_by_side(torch.zeros(1, 3, 30, 32, dtype=torch.uint8))


def test_a_probe_tells_flat_from_shaded_discs_that_it_has_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> tuple[Tensor, list[str]]:
        pictures, labels = [], []
        for i in range(count):
            x, y, r = (0.3 + 0.3 * torch.rand(3, generator=generator)).tolist()
            disc = drawn((x, y, r / 2, list(PAINTS.values())[i % 10]))
            if i % 2:  # lighter towards the bottom
                slope = torch.linspace(-40, 40, 64).view(-1, 1)
                disc = torch.where(disc.amin(1, keepdim=True) < 231, disc.float() + slope, disc).clamp(0, 255).byte()
            pictures.append(disc)
            labels.append("shaded" if i % 2 else "flat")
        return torch.cat(pictures), labels

    pictures, labels = some(60)
    probe = LinearProbe.fit(style_statistics(pictures), labels)
    unseen, expected = some(40)
    assert sum(a == b for a, b in zip(probe(style_statistics(unseen)), expected, strict=True)) >= 38
    with pytest.raises(DataError, match="at least two classes"):
        LinearProbe.fit(torch.randn(3, 2), ["a", "a", "a"])


RECORDS = [
    {"caption": name, "style": style, "group": group}
    for style in ("flat", "3d")
    for name, group in (
        ("cat", "Animals & Nature"), ("fire engine", "Travel & Places"), ("red apple", "Food & Drink"),
        ("bus", "Travel & Places"), ("socks", "Objects"), ("man: red hair", "People & Body"),
        ("two hearts", "Smileys & Emotion"), ("box", "Objects"), ("apple", "Food & Drink"),
    )
]  # fmt: skip
STYLES = {"flat": ("flat",), "3d": ("3d render", "3d")}


def test_names_are_those_of_single_things() -> None:
    assert plain_names(RECORDS) == ["apple", "box", "bus", "cat", "fire engine"]
    rare = [*RECORDS, *({"caption": "fox", "style": f"s{i}"} for i in range(5))]
    assert plain_names(rare) == ["fox"]
    assert coloured_names(RECORDS) == {"red apple": "red"}


def test_prompts_are_of_the_three_kinds_in_words_of_the_data() -> None:
    prompts = attribute_prompts(RECORDS, STYLES, {"box", "cat", "socks"}, count=40)
    assert prompts == attribute_prompts(RECORDS, STYLES, {"box", "cat", "socks"}, count=40)
    kinds = [p.kind for p in prompts]
    assert [kinds.count(kind) for kind in ("colour", "style", "two")] == [16, 14, 10]
    assert prompts[0] == ("colour", "a red apple", "red apple", "red", True)
    assert {p.attribute for p in prompts if p.kind == "colour"} == set(COLOURS)
    assert {p.prompt for p in prompts if p.kind == "two"} == {"two boxes", "two cats"}
    styled = {p.prompt.replace(p.name, "X") for p in prompts if p.kind == "style"}
    assert styled == {"X, flat", "X in flat style", "X, 3d render", "X in 3d render style"}
    assert all(p.name in p.prompt or p.kind == "two" for p in prompts)
    with pytest.raises(DataError, match="no names of single things"):
        attribute_prompts(RECORDS, STYLES, {"socks"})


def test_words_are_inflected() -> None:
    assert [plural(w) for w in ("apple", "box", "cherry", "fire engine", "key", "dish")] == [
        "apples", "boxes", "cherries", "fire engines", "keys", "dishes"
    ]  # fmt: skip
    assert article("orange heart") == "an orange heart" and article("cat") == "a cat"
