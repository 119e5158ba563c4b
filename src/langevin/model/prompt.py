"""What a prompt's text means: weights, BREAK, and switches in the course of a run. Text only, no tensors.

Three syntaxes (`Weighting`), each as the program reads it that it is named after; docs/prompts.md lists them with
examples. A prompt is first rendered for every interval of the run (`schedule`), then each text is parsed (`parse`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from langevin.errors import RequestError

_DEEPEST = 100
"""Brackets within brackets. Each level is a factor on all that it holds, so the time is depth times length."""

_EMPHASIS = 1.1


class Weighting(StrEnum):
    """How a prompt is read and how its weights act on the text states."""

    A1111 = "a1111"
    """(word) [word] (word:1.2) BREAK and switches; states are multiplied, then the mean is restored."""
    COMFYUI = "comfyui"
    """(word) (word:1.2); states are moved away from the empty prompt's states, or towards them."""
    NONE = "none"
    """The text is taken literally."""

    @classmethod
    def of(cls, name: str) -> Weighting:
        try:
            return cls(name)
        except ValueError:
            raise RequestError(f"weighting {name!r} is not known; one of {', '.join(cls)}") from None


@dataclass(frozen=True)
class Piece:
    """A run of text with one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its syntax."""

    sections: tuple[tuple[Piece, ...], ...]
    """The parts between BREAKs, at least one. Each begins a new chunk of tokens."""
    weighting: Weighting = Weighting.A1111
    """The syntax that it was written in, which also says how the weights act."""


@dataclass(frozen=True)
class Segment:
    """The text from one interval of the run on."""

    start: int
    """First interval, counted from 0, that this text is used in. It holds until the next segment's start."""
    text: str


def checked(text: str, name: str = "prompt") -> str:
    """`text` itself, if it can be encoded as UTF-8 and holds no NUL; else RequestError that names where."""
    found = re.search("[\0\ud800-\udfff]", text)
    if found is None:
        return text
    if found[0] == "\0":
        raise RequestError(f"{name}: NUL character at position {found.start()}; remove it")
    raise RequestError(
        f"{name}: half of a surrogate pair (U+{ord(found[0]):04X}) at position {found.start()}; "
        "the text was not decoded correctly, pass it as UTF-8"
    )


def parse(text: str, weighting: Weighting = Weighting.A1111) -> ParsedPrompt:
    """The weighted pieces of `text`, which holds no switches any more (see `schedule`).

    Every text has a meaning: brackets that do not match and numbers that are none are text. RequestError is raised
    for a NUL, half of a surrogate pair, brackets more than 100 deep, and weights that multiply to infinity.
    """
    checked(text)
    match weighting:
        case Weighting.A1111:
            sections = _parse_a1111(text)
        case Weighting.COMFYUI:
            sections = (
                tuple(Piece(_unprotected(part), weight) for part, weight in _comfyui(_protected(text), 1.0, 0)),
            )
        case Weighting.NONE:
            sections = ((Piece(text),),) if text else ((),)
        case _:
            assert_never(weighting)
    for piece in (piece for section in sections for piece in section):
        if not math.isfinite(piece.weight):
            raise RequestError(f"prompt: the weight of {shown(piece.text)} is {piece.weight}; give it a finite weight")
    return ParsedPrompt(sections, weighting)


def escape(text: str) -> str:
    """`text` written so that `parse` and `schedule` take every character of it literally (A1111's syntax)."""
    text = re.sub(r"[\\()\[\]]", lambda found: "\\" + found[0], text)
    return re.sub(r"\bBREAK\b", r"B\\REAK", text)  # a lone backslash is dropped, and the word is no longer BREAK


def shown(text: str, length: int = 40) -> str:
    """`text` in quotes for a message, shortened to `length` characters."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")


# -- weights, A1111 -----------------------------------------------------------------------------------------------

_A1111_TOKEN = re.compile(r"\\[()\[\]\\]?|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_BREAK = re.compile(r"\bBREAK\b")


@dataclass
class _Weighted:
    text: str
    weight: float = 1.0
    is_break: bool = False


def _parse_a1111(text: str) -> tuple[tuple[Piece, ...], ...]:
    parts: list[_Weighted] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where brackets stand that are not closed yet

    def close(bracket: str, factor: float) -> None:
        for part in parts[opened[bracket].pop() :]:
            part.weight *= factor

    for found in _A1111_TOKEN.finditer(text):
        token, weight = found[0], _number(found["weight"])
        if token in opened:
            opened[token].append(len(parts))
            if len(opened[token]) > _DEEPEST:
                raise RequestError(
                    f"prompt: more than {_DEEPEST} brackets {token!r} open at position {found.start()}; "
                    "write a weight as (word:1.5), a bracket that is text as \\( or \\["
                )
        elif token.startswith("\\"):
            parts.append(_Weighted(token[1:]))
        elif weight is not None and opened["("]:
            close("(", weight)
        elif token == ")" and opened["("]:
            close("(", _EMPHASIS)
        elif token == "]" and opened["["]:
            close("[", 1 / _EMPHASIS)
        elif found["weight"] is not None and opened["("]:  # as in (word:1.2.3): no number, so the colon is text
            parts.append(_Weighted(token[:-1]))
            close("(", _EMPHASIS)
        else:
            first, *others = _BREAK.split(token)
            parts.append(_Weighted(first.rstrip() if others else first))
            for i, part in enumerate(others, start=1):  # the space around a BREAK belongs to it
                parts.append(_Weighted("", is_break=True))
                parts.append(_Weighted(part.strip() if i < len(others) else part.lstrip()))
    for bracket, factor in (("(", _EMPHASIS), ("[", 1 / _EMPHASIS)):
        while opened[bracket]:  # brackets that are never closed act to the end
            close(bracket, factor)

    sections: list[list[_Weighted]] = [[]]
    for part in parts:
        if part.is_break:
            sections.append([])
        elif sections[-1] and sections[-1][-1].weight == part.weight:
            sections[-1][-1].text += part.text  # neighbours of one weight are one text, spelled without a seam
        else:
            sections[-1].append(part)
    return tuple(tuple(Piece(p.text, p.weight) for p in section if p.text) for section in sections)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


# -- weights, ComfyUI ---------------------------------------------------------------------------------------------

_COMFYUI_WEIGHT = re.compile(r"(?P<text>.+):(?P<weight>\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*)", re.DOTALL)


def _protected(text: str) -> str:
    """Escaped brackets as control characters: no prompt holds a NUL."""
    return text.replace("\\)", "\0\1").replace("\\(", "\0\2")


def _unprotected(text: str) -> str:
    return text.replace("\0\1", ")").replace("\0\2", "(")


def _comfyui(text: str, weight: float, depth: int) -> Iterator[tuple[str, float]]:
    """A bracket is a factor of 1.1 on the weight around it; a number in it replaces that weight."""
    if depth > _DEEPEST:
        raise RequestError(f"prompt: brackets more than {_DEEPEST} deep; write a weight as (word:1.5)")
    for part in _outermost(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            yield part, weight
            continue
        inside, factor = part[1:-1], weight * _EMPHASIS
        found = _COMFYUI_WEIGHT.fullmatch(inside)
        if found is not None:
            inside, factor = found["text"], float(found["weight"])
        yield from _comfyui(inside, factor, depth + 1)


def _outermost(text: str) -> Iterator[str]:
    """`text` cut at its outermost brackets, which stay with what they hold."""
    level, start = 0, 0
    for i, character in enumerate(text):
        if character == "(":
            if level == 0 and i > start:
                yield text[start:i]
                start = i
            level += 1
        elif character == ")":
            level -= 1
            if level == 0:
                yield text[start : i + 1]
                start = i + 1
    if start < len(text):
        yield text[start:]


# -- switches -----------------------------------------------------------------------------------------------------

_SWITCH_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)\s*")


@dataclass(frozen=True)
class _Change:
    """[before:after:when]"""

    before: _Items
    after: _Items
    when: str


@dataclass(frozen=True)
class _Alternation:
    """[a|b|c]"""

    options: tuple[_Items, ...]


_Item = str | _Change | _Alternation
_Items = tuple[_Item, ...]


@dataclass
class _Open:
    """A bracket that may yet turn out to be a switch, an emphasis, or text."""

    bracket: str
    parts: list[list[_Item]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def literal(self) -> Iterator[_Item]:
        yield self.bracket
        for separator, part in zip(["", *self.separators], self.parts, strict=True):
            yield separator
            yield from part


def schedule(text: str, intervals: int, weighting: Weighting = Weighting.A1111) -> tuple[Segment, ...]:
    """The texts of a prompt with switches over a run of `intervals` steps of the sampler; the first starts at 0.

    [a:b:0.4] is a for the first 40 % of the intervals (rounded down), then b; [a:b:8] the same after 8 intervals;
    [b:0.4] nothing, then b; [a::0.4] a, then nothing; [a|b] a and b by turns, one interval each. They may stand
    inside each other. A number with a point is a fraction of the run, one without is a count. Brackets that are no
    switch stay as they are. Only A1111's syntax has switches.
    """
    checked(text)
    if intervals < 1:
        raise RequestError(f"a run of {intervals} intervals has no place for a prompt; at least 1")
    if weighting is not Weighting.A1111:
        return (Segment(0, text),)
    items = _switches(text)
    if all(isinstance(item, str) for item in items):
        return (Segment(0, text),)
    segments: list[Segment] = []
    for i in range(intervals):
        rendered = "".join(_render(items, i, intervals))
        if not segments or segments[-1].text != rendered:
            segments.append(Segment(i, rendered))
    return tuple(segments)


def thresholds(segments: Sequence[Segment], sigmas: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Each text with the noise level from which on, downwards, it is used; the first has infinity.

    sigmas: the run's grid, descending, one more than the intervals that `segments` was made for.
    """
    return tuple((math.inf if s.start == 0 else float(sigmas[s.start]), s.text) for s in segments)


def _switches(text: str) -> _Items:
    """A bracket counts as a switch only if all brackets inside it match; what does not match is text."""
    done: list[_Item] = []
    stack: list[_Open] = []

    def give_up() -> None:
        for bracket in stack:
            done.extend(bracket.literal())
        stack.clear()

    for found in _SWITCH_TOKEN.finditer(text):
        token = found[0]
        if token in ("[", "("):
            if len(stack) == _DEEPEST:
                raise RequestError(f"prompt: brackets more than {_DEEPEST} deep at position {found.start()}")
            stack.append(_Open(token))
        elif token in (":", "|") and stack:
            stack[-1].separators.append(token)
            stack[-1].parts.append([])
        elif token in ("]", ")") and stack:
            closed = _closed(stack[-1], token)
            if closed is None:
                give_up()
                done.append(token)
            else:
                stack.pop()
                (stack[-1].parts[-1] if stack else done).extend(closed)
        else:
            (stack[-1].parts[-1] if stack else done).append(token)
    give_up()
    return tuple(done)


def _closed(group: _Open, bracket: str) -> Sequence[_Item] | None:
    """What a bracket and its partner make of their content; None where they make nothing of it."""
    *earlier, last = group.parts
    match group.bracket + bracket, "".join(group.separators):
        case ("[]" | "()", "") | ("()", ":"):
            return [*group.literal(), bracket]
        case "[]", (":" | "::"):
            when = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
            if when is None:
                return None
            before, after = earlier if len(earlier) == 2 else ([], earlier[0])
            return [_Change(tuple(before), tuple(after), when[1])]
        case "[]", separators if set(separators) == {"|"}:
            return [_Alternation(tuple(tuple(part) for part in group.parts))]
    return None


def _render(items: _Items, interval: int, intervals: int) -> Iterator[str]:
    for item in items:
        match item:
            case str():
                yield item
            case _Change(before, after, when):
                at = float(when) * (intervals if "." in when else 1)
                whole = math.trunc(min(max(at, 0), intervals))
                yield from _render(before if interval < whole else after, interval, intervals)
            case _Alternation(options):
                yield from _render(options[interval % len(options)], interval, intervals)
