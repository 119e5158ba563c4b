"""Prompts whose answer can be measured: a thing in a colour, in a style, or two of it; from the words of a data set."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from langevin.errors import DataError
from langevin.evaluation.colours import NAMES

COLOURS = tuple(name for name in NAMES if name not in ("white", "grey"))
"""What is asked for: white things do not stand out on white, and grey ones are hardly ever said."""
GROUPS = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
"""Groups of a record that are things; where records have no groups, all are."""
KNOWN_SHARE = 0.25
"""Of the prompts with a colour: at most so many are names of the data already ("red apple")."""

_NAME = re.compile(r"[a-z]+(?: [a-z]+)?")


class AttributePrompt(NamedTuple):
    """A prompt and what has to be seen in its picture."""

    kind: Literal["colour", "style", "two"]
    prompt: str
    name: str
    """The thing, by its name in the data."""
    attribute: str
    """A colour of `COLOURS`, a style's key, or "2"."""
    known: bool
    """The data has a picture that is called just so."""


def plain_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of things in the singular, of one or two words and without a colour, that are drawn in at least half of the
    styles; sorted."""
    styles: dict[str, set[str]] = defaultdict(set)
    for record in records:
        name = str(record["caption"])
        words = name.split()
        several = words[-1].endswith("s") and not words[-1].endswith(("ss", "us"))
        plain = _NAME.fullmatch(name) and not several and not set(words) & {*NAMES, "two"}
        if plain and record.get("group", GROUPS[0]) in GROUPS:
            styles[name].add(str(record.get("style")))
    most = max(map(len, styles.values()), default=0)
    return sorted(name for name, drawn in styles.items() if 2 * len(drawn) >= most)


def coloured_names(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The colour of each name that is a colour and one word: {"red apple": "red"}."""
    found = {}
    for record in records:
        words = str(record["caption"]).split()
        if len(words) == 2 and words[0] in COLOURS:
            found[" ".join(words)] = words[0]
    return found


def attribute_prompts(
    records: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Sequence[str]],
    countable: Collection[str],
    *,
    count: int = 200,
    seed: int = 0,
) -> list[AttributePrompt]:
    """`count` prompts: 40 % with a colour, 35 % with a style, the rest of two things; the same each time.

    records: of the training pictures. styles: words for each style, of which the first are said. countable: names of
    which real pictures show one separate thing. Raises DataError where the data has no such names.
    """
    names = plain_names(records)
    lone = sorted(set(names) & set(countable))
    if not names or not lone or not styles:
        raise DataError("the data has no names of single things in known styles to make prompts of")
    chance = random.Random(seed)
    coloured, styled = round(0.4 * count), round(0.35 * count)
    known = coloured_names(records)
    prompts = [
        AttributePrompt("colour", article(name), name, known[name], True)
        for name in _drawn(sorted(known), min(len(known), int(KNOWN_SHARE * coloured)), chance)
    ]
    for place, name in enumerate(_drawn(names, coloured - len(prompts), chance)):
        colour = COLOURS[place % len(COLOURS)]
        prompts.append(
            AttributePrompt("colour", article(f"{colour} {name}"), name, colour, f"{colour} {name}" in known)
        )
    keys = sorted(styles)
    for place, name in enumerate(_drawn(names, styled, chance)):
        style = keys[place % len(keys)]
        words = styles[style][0]
        prompt = (f"{name} in {words} style", f"{name}, {words}")[place // len(keys) % 2]
        prompts.append(AttributePrompt("style", prompt, name, style, True))
    called = {str(record["caption"]) for record in records}
    for name in _drawn(lone, count - len(prompts), chance):
        prompt = f"two {plural(name)}"
        prompts.append(AttributePrompt("two", prompt, name, "2", prompt in called))
    return prompts


def plural(name: str) -> str:
    """ "apple" to "apples", "box" to "boxes", "cherry" to "cherries": the last word's ending."""
    if re.search(r"[^aeiou]y$", name):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "z", "ch", "sh")) else f"{name}s"


def article(text: str) -> str:
    """The text with "a" or "an"."""
    return f"{'an' if text[:1].lower() in 'aeiou' else 'a'} {text}"


def _drawn(names: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """In a random order, each as often as any other."""
    found: list[str] = []
    while len(found) < count:
        found += chance.sample(list(names), len(names))
    return found[:count]
