"""The tables of docs/prompts.md say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from langevin.model.chunks import layout
from langevin.model.prompt import Weighting, parse, schedule
from langevin.model.tokenizer import Tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"


def rows(title: str) -> list[tuple[str, str]]:
    """The two columns of the table under a heading."""
    section = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S)
    assert section is not None, title
    lines = [line for line in section[1].splitlines() if line.startswith("| `")]
    assert len(lines) >= 4
    return [(a, b) for a, b in (re.split(r"(?<!\\) \| ", line.strip("| "), maxsplit=1) for line in lines)]


def code(cell: str) -> str:
    return cell.replace("\\|", "|").removeprefix("`").removesuffix("`")


def pieces(cell: str) -> Iterator[tuple[str, float]]:
    for part in cell.split(" · "):
        text, weight = re.fullmatch(r"`(.*)`(?: × ([\d.]+))?", part, re.S).groups()  # type: ignore[union-attr]
        yield text, float(weight or 1)


@pytest.mark.parametrize(
    ("title", "weighting"), [("Weights (`a1111`)", Weighting.A1111), ("ComfyUI's syntax", Weighting.COMFYUI)]
)
def test_weights(title: str, weighting: Weighting) -> None:
    for prompt, expected in rows(title):
        (section,) = parse(code(prompt), weighting).sections
        assert [p.text for p in section] == [text for text, _ in pieces(expected)], prompt
        assert [p.weight for p in section] == pytest.approx([w for _, w in pieces(expected)], abs=5e-5), prompt


def test_windows() -> None:
    for prompt, expected in rows("Long prompts and `BREAK`"):
        found = layout(parse(code(prompt)), Tokenizer.clip())
        assert [chunk.length for chunk in found.chunks] == [int(n) for n in expected.split(", ")], prompt


def test_switches() -> None:
    for prompt, expected in rows("Switches (`a1111`)"):
        texts = [re.fullmatch(r"(\d+) `(.*)`", part).groups() for part in expected.split(" · ")]  # type: ignore[union-attr]
        assert [(s.start, s.text) for s in schedule(code(prompt), 10)] == [(int(n), text) for n, text in texts], prompt


def test_alternation() -> None:
    assert [s.text for s in schedule("[cat|dog]", 4)] == ["cat", "dog", "cat", "dog"]
