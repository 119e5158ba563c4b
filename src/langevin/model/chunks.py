"""Parsed prompts as chunks of token ids with weights, each as long as the text network's window. No tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never

from langevin.errors import RequestError
from langevin.model.prompt import ParsedPrompt, Piece, Weighting, shown
from langevin.model.tokenizer import Tokenizer

_COMMA_BACKTRACK = 20
"""A1111: a chunk that is full ends at its last comma instead, if at most so many tokens follow it."""

_LONG_WORD = 8
"""ComfyUI: a word of at least so many tokens may be cut by the end of a chunk; shorter ones go to the next."""


class Long(StrEnum):
    """What becomes of a prompt with more tokens than the window has room for."""

    CHUNK = "chunk"
    TRUNCATE = "truncate"
    ERROR = "error"

    @classmethod
    def of(cls, name: str) -> Long:
        try:
            return cls(name)
        except ValueError:
            raise RequestError(f"long {name!r} is not known; one of {', '.join(cls)}") from None


class WeightedToken(NamedTuple):
    id: int
    weight: float


@dataclass(frozen=True)
class Chunk:
    """One window of the text network."""

    ids: tuple[int, ...]
    """Start token, text, end token, padding: `Tokenizer.max_length` ids."""
    weights: tuple[float, ...]
    """One for each id; 1 for those that are no text."""
    length: int
    """How many of them are text."""

    @property
    def weighted(self) -> bool:
        return any(w != 1 for w in self.weights)


@dataclass(frozen=True)
class Layout:
    """A prompt as the text network is given it."""

    chunks: tuple[Chunk, ...]
    """At least one."""
    notices: tuple[str, ...] = ()
    """What the user should know: that the prompt is long, what was cut."""


def layout(prompt: ParsedPrompt, tokenizer: Tokenizer, long: Long = Long.CHUNK) -> Layout:
    """The chunks of `prompt`. Raises RequestError where it does not fit and `long` is ERROR.

    A1111's syntax fills chunk after chunk, each BREAK begins a new one, and a full chunk is ended at a comma close to
    its end; ComfyUI's does not tear words; literal text is filled in without either.
    """
    match prompt.weighting:
        case Weighting.A1111:
            lines = [list(_tokens(section, tokenizer)) for section in prompt.sections]
            filled = _filled_a1111(lines, tokenizer)
        case Weighting.COMFYUI:
            words = [word for section in prompt.sections for word in _words(section, tokenizer)]
            lines = [[token for word in words for token in word]]
            filled = _filled_comfyui(words, tokenizer.room)
        case Weighting.NONE:
            lines = [list(_tokens(section, tokenizer, pad_in_text=True)) for section in prompt.sections]
            filled = _filled(lines[0], tokenizer.room)
        case _:
            assert_never(prompt.weighting)
    return _bounded(filled, lines, tokenizer, long)


def empty_chunk(tokenizer: Tokenizer) -> Chunk:
    """The chunk of the empty prompt."""
    return _chunk([], tokenizer)


def _bounded(
    filled: list[list[WeightedToken]], lines: list[list[WeightedToken]], tokenizer: Tokenizer, long: Long
) -> Layout:
    room = tokenizer.room
    tokens = [token for line in lines for token in line]
    if len(filled) == 1:
        return Layout((_chunk(filled[0], tokenizer),))
    plural = "" if len(tokens) == 1 else "s"
    found = f"prompt {shown(tokenizer.decode([t.id for t in tokens[:room]]))}: {len(tokens)} token{plural}"
    match long:
        case Long.CHUNK:
            chunks = tuple(_chunk(line, tokenizer) for line in filled)
            return Layout(chunks, (f"{found} in {len(filled)} chunks of at most {room}",))
        case Long.TRUNCATE:
            notices = [f"{found}; BREAK has no effect where prompts are cut"] if len(lines) > 1 else []
            if len(tokens) > room:
                rest = shown(tokenizer.decode([t.id for t in tokens[room:]]), 200)
                notices.append(f"{found}, {room} fit; cut off: {rest}")
            return Layout((_chunk(tokens[:room], tokenizer),), tuple(notices))
        case Long.ERROR:
            raise RequestError(
                f"{found} in {len(filled)} chunks; long='error' allows one of {room} tokens: shorten the prompt, or "
                "choose long='chunk'"
            )
        case _:
            assert_never(long)


def _chunk(line: list[WeightedToken], tokenizer: Tokenizer) -> Chunk:
    weights = [1.0, *(t.weight for t in line)]
    ids = tokenizer.padded([t.id for t in line])
    return Chunk(tuple(ids), (*weights, *[1.0] * (len(ids) - len(weights))), len(line))


def _tokens(section: Iterable[Piece], tokenizer: Tokenizer, pad_in_text: bool = False) -> Iterator[WeightedToken]:
    for piece in section:
        for i in tokenizer.encode(piece.text, pad_in_text=pad_in_text):
            yield WeightedToken(i, piece.weight)


def _filled(line: list[WeightedToken], room: int) -> list[list[WeightedToken]]:
    return [line[i : i + room] for i in range(0, max(len(line), 1), room)]


def _filled_a1111(lines: list[list[WeightedToken]], tokenizer: Tokenizer) -> list[list[WeightedToken]]:
    comma = tokenizer.backend.token_to_id(",</w>")
    chunks: list[list[WeightedToken]] = []
    for i, line in enumerate(lines):
        open_chunk: list[WeightedToken] = []
        last_comma: int | None = None
        for token in line:
            if len(open_chunk) == tokenizer.room:
                moved: list[WeightedToken] = []
                near = last_comma is not None and len(open_chunk) - last_comma <= _COMMA_BACKTRACK
                if near and last_comma is not None and token.id != comma:
                    open_chunk, moved = open_chunk[: last_comma + 1], open_chunk[last_comma + 1 :]
                chunks.append(open_chunk)
                open_chunk, last_comma = moved, None
            elif token.id == comma:
                last_comma = len(open_chunk)
            open_chunk.append(token)
        if open_chunk or i + 1 < len(lines):  # a BREAK ends its chunk though it be empty
            chunks.append(open_chunk)
    return chunks or [[]]


def _words(section: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[list[WeightedToken]]:
    for piece in section:
        for word in piece.text.replace("\n", " ").split(" "):
            if word:
                yield [WeightedToken(i, piece.weight) for i in tokenizer.encode(word)]


def _filled_comfyui(words: Iterable[list[WeightedToken]], room: int) -> list[list[WeightedToken]]:
    chunks: list[list[WeightedToken]] = [[]]
    for word in words:
        rest = word
        while len(chunks[-1]) + len(rest) > room:
            if len(word) >= min(_LONG_WORD, room):
                free = room - len(chunks[-1])
                chunks[-1].extend(rest[:free])
                rest = rest[free:]
            chunks.append([])
        chunks[-1].extend(rest)
    return chunks
