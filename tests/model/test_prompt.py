"""Prompt syntax: documented examples, recorded outputs of the programs it comes from, and properties."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langevin.errors import RequestError
from langevin.model.chunks import Chunk, Long, empty_chunk, layout
from langevin.model.prompt import ParsedPrompt, Piece, Segment, Weighting, escape, parse, schedule, shown, thresholds
from langevin.model.tokenizer import Tokenizer

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "prompts.json").read_text("utf-8"))
SYNTAX = st.lists(
    st.sampled_from(
        ["a", "b ", " ", ", ", "(", ")", "[", "]", ":", "|", "\\", ":1.2)", ":0.5]", ":3]", " BREAK ", "é", "\n"]
    ),
    max_size=30,
).map("".join)
TEXT = st.text(max_size=60).filter(lambda t: "\0" not in t)


def pieces(text: str, weighting: Weighting = Weighting.A1111) -> list[list[tuple[str, float]]]:
    return [[(p.text, p.weight) for p in section] for section in parse(text, weighting).sections]


# -- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        ("[word]", [("word", 1 / 1.1)]),
        ("[x:1.2]", [("x:1.2", 1 / 1.1)]),  # not a weight
        ("x:1.2)", [("x:1.2)", 1.0)]),  # no bracket is open
        ("(x: -.5 )", [("x", -0.5)]),
        ("(x:1.2.3) y", [("x:1.2.3", 1.1), (" y", 1.0)]),
        (r"back\slash \\ ", [(r"backslash \ ", 1.0)]),
        ("", []),
    ],
)
def test_documented_examples(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == [expected]


@pytest.mark.parametrize(("text", "expected"), GOLDEN["weights"])
def test_weights_as_recorded(text: str, expected: list[list[Any] | None]) -> None:
    """Bit for bit, also where brackets do not match."""
    sections: list[list[tuple[str, float]]] = [[]]
    for part in expected:
        if part is None:
            sections.append([])
        elif part[0]:
            sections[-1].append((part[0], part[1]))
    assert pieces(text) == sections


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a\n  BREAK\n\tb", [["a"], ["b"]]),
        ("BREAK a BREAK", [[], ["a"], []]),
        ("a BREAK BREAK b", [["a"], [], ["b"]]),
        ("BREAKFAST break unBREAKable", [["BREAKFAST break unBREAKable"]]),
        ("(a BREAK b:1.5)", [["a"], ["b"]]),
    ],
)
def test_break(text: str, expected: list[list[str]]) -> None:
    assert [[p.text for p in section] for section in parse(text).sections] == expected


def test_break_inside_brackets_keeps_their_weight() -> None:
    assert pieces("(a BREAK [b]:1.5) c") == [[("a", 1.5)], [("b", 1.5 / 1.1), (" c", 1.0)]]


@given(depth=st.integers(0, 60), weight=st.floats(-10, 10).map(lambda w: round(w, 3)))
def test_nested_weights_multiply(depth: int, weight: float) -> None:
    text = "(" * depth + f"(word:{weight:.3f})" + ")" * depth
    (((word, found),),) = pieces(text)
    assert word == "word"
    assert found == pytest.approx(weight * 1.1**depth, rel=1e-12)


@given(text=SYNTAX | TEXT, weighting=st.sampled_from(list(Weighting)))
def test_every_text_has_a_meaning(text: str, weighting: Weighting) -> None:
    parsed = parse(text, weighting)
    assert isinstance(parsed, ParsedPrompt)
    assert parsed.sections
    assert all(math.isfinite(p.weight) and p.text for section in parsed.sections for p in section)


@given(text=TEXT | SYNTAX)
def test_escaped_text_is_literal(text: str) -> None:
    expected = [[(text, 1.0)]] if text else [[]]
    assert pieces(escape(text)) == expected
    assert schedule(escape(text), 10) == (Segment(0, escape(text)),)


@given(parts=st.lists(st.tuples(TEXT.filter(bool), st.sampled_from([0.5, 1.25, 2.0, -1.0])), max_size=6))
def test_written_weights_are_read_back(parts: list[tuple[str, float]]) -> None:
    text = "".join(f"({escape(part)}:{weight})" for part, weight in parts)
    joined: list[tuple[str, float]] = []
    for part, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + part, weight)
        else:
            joined.append((part, weight))
    # A colon before a number would be read as that text's weight, were it not that the bracket closes once.
    assert pieces(text) == [joined]


@given(text=TEXT)
def test_literal_text(text: str) -> None:
    assert pieces(text, Weighting.NONE) == ([[(text, 1.0)]] if text else [[]])
    assert schedule(text, 3, Weighting.NONE) == (Segment(0, text),)


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800", "\udc00b"])
@pytest.mark.parametrize("weighting", list(Weighting))
def test_texts_that_are_refused(bad: str, weighting: Weighting) -> None:
    with pytest.raises(RequestError, match="position"):
        parse(bad, weighting)
    with pytest.raises(RequestError, match="position"):
        schedule(bad, 5, weighting)


@pytest.mark.parametrize("weighting", [Weighting.A1111, Weighting.COMFYUI])
def test_infinite_weights_are_refused(weighting: Weighting) -> None:
    with pytest.raises(RequestError, match="finite"):
        parse("(a:" + "9" * 400 + ")", weighting)
    with pytest.raises(RequestError, match="finite"):
        parse("((a:" + "9" * 300 + "):" + "9" * 300 + ")")


@pytest.mark.parametrize("weighting", [Weighting.A1111, Weighting.COMFYUI])
@pytest.mark.parametrize("text", ["(" * 5000, "(a " * 5000, "(" * 5000 + "a" + ")" * 5000, "[a|" * 5000])
def test_deep_brackets(text: str, weighting: Weighting) -> None:
    """A bound instead of a recursion error or a quadratic wait."""
    if weighting is Weighting.COMFYUI and ")" not in text:
        parse(text, weighting)  # brackets that are never closed are text there
        return
    with pytest.raises(RequestError, match="100"):
        parse(text, weighting)
        schedule(text, 5, weighting)


@pytest.mark.parametrize("unit", ["(a:1.2) ", "a, ", " ", ":", ": ", "\\", "[a|b]", "BREAK ", ")", "((a) ", "0"])
def test_long_prompts_take_linear_time(unit: str) -> None:
    text = (unit * 20_000)[:20_000]
    if unit == "((a) ":
        text = text[: 5 * 90]
    began = time.process_time()
    for segment in schedule(text, 20):
        parse(segment.text)
    for weighting in (Weighting.COMFYUI, Weighting.NONE):
        parse(text, weighting)
    assert time.process_time() - began < 5


# -- ComfyUI ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (b) [c] d", [("a ", 1.0), ("b", 1.1), (" [c] d", 1.0)]),
        ("((b:1.3) c)", [("b", 1.3), (" c", 1.1)]),  # a number replaces the weight around it
        ("((b) c:1.5)", [("b", 1.5 * 1.1), (" c", 1.5)]),
        ("(a", [("(a", 1.0)]),
        (r"\(a\)", [("(a)", 1.0)]),
        ("(a:nan) (b:inf)", [("a:nan", 1.1), (" ", 1.0), ("b:inf", 1.1)]),
        ("a BREAK b [x:y:0.5]", [("a BREAK b [x:y:0.5]", 1.0)]),
    ],
)
def test_comfyui_examples(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text, Weighting.COMFYUI) == [expected]


@pytest.mark.parametrize(("text", "expected"), GOLDEN["comfyui"])
def test_comfyui_as_recorded(text: str, expected: list[list[Any]]) -> None:
    assert pieces(text, Weighting.COMFYUI) == [[(t, w) for t, w in expected]]


# -- switches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(0, "test")]),
        ("a [b:3]", [(0, "a "), (3, "a b")]),
        ("a [b: 3]", [(0, "a "), (3, "a b")]),
        ("a [[[b]]:2]", [(0, "a "), (2, "a [[b]]")]),
        ("[(a:2):3]", [(0, ""), (3, "(a:2)")]),
        ("a [b : c : 1] d", [(0, "a b  d"), (1, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(0, "abe"), (1, "ace"), (2, "ade")]),
        ("a [unbalanced", [(0, "a [unbalanced")]),
        ("a [b:.5] c", [(0, "a  c"), (5, "a b c")]),
        ("((a][:b:c [d:3]", [(0, "((a][:b:c "), (3, "((a][:b:c d")]),
        ("[fe|]male", [(i, ("female", "male")[i % 2]) for i in range(10)]),
        ("[fe|||]male", [(0, "female"), (1, "male"), (4, "female"), (5, "male"), (8, "female"), (9, "male")]),
        ("[a::0.4] b", [(0, "a b"), (4, " b")]),
        ("[a:b:0.39]", [(0, "a"), (3, "b")]),
        ("[a:b:0.0]", [(0, "b")]),
        ("[a:b:-2]", [(0, "b")]),
        ("[a:b:99]", [(0, "a")]),
        ("[a:b:1.0]", [(0, "a")]),
        ("[a:b:1e400] [c:d:-1e400]", [(0, "a d")]),
        ("[a:b]", [(0, "[a:b]")]),
        (r"\[a:b:0.5\]", [(0, r"\[a:b:0.5\]")]),
        ("a | [b:c:0.5]", [(0, "a | b"), (5, "a | c")]),
    ],
)
def test_documented_switches(text: str, expected: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == tuple(Segment(*one) for one in expected)


def test_five_switches_at_once() -> None:
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    assert schedule(text, 100) == (
        Segment(0, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        Segment(25, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        Segment(50, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        Segment(60, "fantasy landscape with a lake and an oak in background masterful"),
        Segment(75, "fantasy landscape with a lake and a christmas tree in background masterful"),
    )


@pytest.mark.parametrize(("text", "intervals", "expected"), GOLDEN["switches"])
def test_switches_as_recorded(text: str, intervals: int, expected: list[list[Any]]) -> None:
    segments: list[Segment] = []
    start = 0
    for last, words in expected:
        if not segments or segments[-1].text != words:
            segments.append(Segment(start, words))
        start = last
    assert schedule(text, intervals) == tuple(segments)


@given(text=SYNTAX, intervals=st.integers(1, 40))
def test_segments_are_in_order(text: str, intervals: int) -> None:
    segments = schedule(text, intervals)
    starts = [s.start for s in segments]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < intervals
    assert all(a.text != b.text for a, b in itertools.pairwise(segments))


def test_thresholds() -> None:
    sigmas = [14.0, 7.0, 3.0, 1.0, 0.0]
    assert thresholds(schedule("[a:b:0.5]", 4), sigmas) == ((math.inf, "a"), (3.0, "b"))
    assert thresholds(schedule("a", 4), sigmas) == ((math.inf, "a"),)
    with pytest.raises(RequestError, match="at least 1"):
        schedule("a", 0)


def test_names() -> None:
    assert Weighting.of("comfyui") is Weighting.COMFYUI
    assert Long.of("chunk") is Long.CHUNK
    with pytest.raises(RequestError, match="a1111, comfyui, none"):
        Weighting.of("A1111")
    with pytest.raises(RequestError, match="chunk, truncate, error"):
        Long.of("cut")
    assert shown("a" * 100, 10) == "'aaaaaaa...'"


# -- chunks -------------------------------------------------------------------------------------------------------

TOKENIZER = Tokenizer.clip()


def lengths(text: str, weighting: Weighting = Weighting.A1111) -> list[int]:
    return [c.length for c in layout(parse(text, weighting), TOKENIZER).chunks]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        ("cat " * 75, [75]),
        ("cat " * 76, [75, 1]),
        ("cat " * 200, [75, 75, 50]),
        # A comma close to the end of a full chunk ends it; one further away does not.
        ("cat " * 60 + "," + "dog " * 15, [61, 15]),
        ("cat " * 54 + "," + "dog " * 30, [75, 10]),
        ("cat " * 55 + "," + "dog " * 30, [56, 30]),
        ("cat " * 74 + "," + "dog " * 3, [75, 3]),
        ("cat " * 75 + "," + "dog " * 3, [75, 4]),  # the comma itself begins the next
        ("cat BREAK dog", [1, 1]),
        ("BREAK cat BREAK", [0, 1]),
        ("cat BREAK BREAK dog", [1, 0, 1]),
        ("cat " * 75 + "BREAK dog", [75, 1]),
    ],
)
def test_chunk_lengths(text: str, expected: list[int]) -> None:
    assert lengths(text) == expected


def test_comfyui_does_not_tear_words() -> None:
    word = "xq" * 3  # several tokens
    n = len(TOKENIZER.encode(word))
    assert 1 < n < 8
    assert lengths("cat " * 74 + word, Weighting.COMFYUI) == [74, n]
    assert lengths("cat " * 74 + word) == [75, n - 1]
    long_word = "xq" * 30
    assert len(TOKENIZER.encode(long_word)) >= 8
    assert lengths("cat " * 74 + long_word, Weighting.COMFYUI)[0] == 75


@given(
    text=st.lists(st.sampled_from(["cat ", "dog, ", "(x:1.3) ", "BREAK ", "[y] ", "qxzv "]), max_size=300).map("".join)
)
def test_no_token_is_lost(text: str) -> None:
    parsed = parse(text)
    found = layout(parsed, TOKENIZER)
    expected = [(i, p.weight) for s in parsed.sections for p in s for i in TOKENIZER.encode(p.text)]
    kept: list[tuple[int, float]] = []
    for chunk in found.chunks:
        check_chunk(chunk)
        kept += zip(chunk.ids[1 : chunk.length + 1], chunk.weights[1 : chunk.length + 1], strict=True)
    assert kept == expected
    assert bool(found.notices) == (len(found.chunks) > 1)


def check_chunk(chunk: Chunk) -> None:
    assert len(chunk.ids) == len(chunk.weights) == 77
    assert chunk.ids[0] == 49406
    assert set(chunk.ids[chunk.length + 1 :]) == {49407}
    assert set(chunk.weights[chunk.length + 1 :]) == {1.0}


def test_long_prompts_are_said() -> None:
    text = "cat " * 75 + "red dog"
    parsed = parse(text)
    (notice,) = layout(parsed, TOKENIZER).notices
    assert "77 tokens in 2 chunks of at most 75" in notice
    cut = layout(parsed, TOKENIZER, Long.TRUNCATE)
    assert len(cut.chunks) == 1
    assert "'red dog'" in cut.notices[0]
    with pytest.raises(RequestError, match="77 tokens in 2 chunks"):
        layout(parsed, TOKENIZER, Long.ERROR)
    assert layout(parse("a cat"), TOKENIZER, Long.ERROR).notices == ()
    (notice,) = layout(parse("a BREAK b"), TOKENIZER, Long.TRUNCATE).notices
    assert "BREAK has no effect" in notice


def test_padding_of_both_models() -> None:
    chunk = empty_chunk(Tokenizer.clip(pad=0))
    assert chunk.ids == (49406, 49407, *[0] * 75)
    assert empty_chunk(TOKENIZER).ids == (49406, *[49407] * 76)


def test_exclamation_marks_of_literal_text() -> None:
    """diffusers takes "!" for the padding token where the model pads with it; the other programs do not."""
    two = Tokenizer.clip(pad=0)
    assert layout(parse("hi!", Weighting.NONE), two).chunks[0].ids[1:4] == (1883, 0, 49407)
    assert layout(parse("hi!", Weighting.A1111), two).chunks[0].ids[1:4] == (1883, 256, 49407)
    assert layout(parse("hi!", Weighting.NONE), TOKENIZER).chunks[0].ids[1:4] == (1883, 256, 49407)


def test_pieces_are_values() -> None:
    assert parse("(a)") == ParsedPrompt(((Piece("a", 1.1),),))
    assert hash(parse("(a)")) == hash(parse("(a)"))
