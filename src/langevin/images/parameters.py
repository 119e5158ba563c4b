"""The `parameters` text of AUTOMATIC1111's web UI, which many programs read and write.

    prompt, over any number of lines
    Negative prompt: text, over any number of lines
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Model: name

Its reader takes a line that begins with `Negative prompt:` as the beginning of the negative prompt, wherever it
stands, and the last line as parameters where at least three `name: value` pairs are found in it. Both can be forged
by a prompt with line breaks; `parameters_text` does not let it happen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST_PAIRS = 3


class Parameters(NamedTuple):
    prompt: str
    negative: str
    fields: dict[str, str]


def parameters_text(prompt: str, negative: str, fields: Mapping[str, object]) -> str:
    """The text for one picture. Fields that are None are left out; at least three must remain.

    A prompt is written as it is, except that a line in it which would be read as the beginning of the negative prompt
    gets a space before its colon.
    """
    pairs = [f"{name}: {_quoted(str(value))}" for name, value in fields.items() if value is not None]
    if len(pairs) < _FEWEST_PAIRS:
        raise ValueError(f"{len(pairs)} fields: readers need {_FEWEST_PAIRS} to know the line by")
    lines = [_harmless(prompt)]
    if negative:
        lines.append(f"{_NEGATIVE} {_harmless(negative)}")
    return "\n".join([*lines, ", ".join(pairs)])


def parse_parameters(text: str) -> Parameters:
    """Reads such a text as the web UI does. Never raises: what is not understood belongs to the prompt."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _FEWEST_PAIRS:
        lines, pairs = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in (line.strip() for line in lines):
        if line.startswith(_NEGATIVE):
            part = negative
            line = line[len(_NEGATIVE) :].strip()
        part.append(line)
    return Parameters("\n".join(prompt), "\n".join(negative), {name: _unquoted(value) for name, value in pairs})


def _harmless(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(
        re.sub(r"^(\s*Negative prompt):", r"\1 :", line) if line.strip().startswith(_NEGATIVE) else line
        for line in lines
    )


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n\r]', value) or value != value.strip() else value


def _unquoted(value: str) -> str:
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
