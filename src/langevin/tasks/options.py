"""The base of every set of options: strict, frozen, and with errors of one line that say what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from langevin.errors import RequestError


def _tuple_of_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FromList = BeforeValidator(_tuple_of_list)
"""Lets a list stand where a tuple is asked for."""


@dataclass(frozen=True)
class Shown:
    """How the command line shows a field."""

    default: str | None = None
    """What stands for the default in words, where it is decided later."""
    flag: str | None = None
    """A short form, as -n."""
    written: bool = True
    """Whether it is an option there; else the command has a form of its own for it."""
    option: str | None = None
    """What the option is called, where it is not called as the field: --from is no name for one."""


class Options(BaseModel):
    """A frozen set of options. An unknown name, a wrong type or a value out of its bounds raises RequestError.

    Types are strict: True is not a seed and "7" is not a number. A whole number may stand where a fraction is asked
    for; NaN and infinity may not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RequestError(_one_line(error, type(self).model_fields)) from None


def bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """The least and the greatest value that a field takes, as far as it has them."""
    low = high = None
    for item in _metadata(field):
        low = getattr(item, "ge", getattr(item, "gt", low))
        high = getattr(item, "le", getattr(item, "lt", high))
    return low, high


def choices(annotation: Any) -> tuple[str, ...]:
    """The words of a Literal, also inside a union or Annotated; () where there is none."""
    if get_origin(annotation) is Literal:
        return tuple(str(word) for word in get_args(annotation))
    found: tuple[str, ...] = ()
    for inner in get_args(annotation):
        found = found or choices(inner)
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where one of `known` is close to `word`, else an empty text."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def show(value: object, longest: int = 60) -> str:
    """A value in an error message: one printable line, shortened."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _metadata(field: FieldInfo) -> list[Any]:
    return [*field.metadata, *_nested_metadata(field.annotation)]


def _nested_metadata(annotation: Any) -> list[Any]:
    """What Annotated says inside unions and tuples: of the items, where the type is a tuple."""
    found: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *items = get_args(annotation)
        for item in items:
            found.extend(item.metadata if isinstance(item, FieldInfo) else [item])
        found.extend(_nested_metadata(annotation))
    else:
        for inner in get_args(annotation):
            found.extend(_nested_metadata(inner))
    return found


def _span(field: FieldInfo) -> str:
    low, high = bounds(field)
    match (low, high):
        case (None, None):
            return ""
        case (_, None):
            return f"{low} or more"
        case (None, _):
            return f"{high} or less"
        case _:
            return f"{low} to {high}"


_KINDS = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false"}


def _one_line(error: ValidationError, fields: dict[str, FieldInfo]) -> str:
    """All that is wrong, field by field: the field, its value, its bound and what to do."""
    lines: dict[str, None] = {}
    seen: set[str] = set()
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        kind, value = item["type"], item["input"]
        if name in seen:  # a union reports each of its members
            continue
        seen.add(name)
        field = fields.get(name)
        if kind == "extra_forbidden" or (name and field is None):
            lines[f"unknown option {show(name)}{nearest(name, fields)}"] = None
            continue
        if field is None or kind == "value_error":
            lines[str(item.get("ctx", {}).get("error", item["msg"]))] = None
            continue
        words = choices(field.annotation)
        span = _span(field)
        give = f": give {span}" if span else ""
        if kind == "missing" and len(item["loc"]) == 1:
            lines[f"{name} is missing: {field.description}"] = None
        elif words:
            hint = nearest(value, words) if isinstance(value, str) else ""
            lines[f"{name} {show(value)} is not known: use {_list(words)}{hint}"] = None
        elif kind.startswith(("greater_than", "less_than", "finite_number")):
            lines[f"{name} {show(value)} is out of bounds{give}"] = None
        elif kind == "string_too_long":
            lines[f"{name} is {len(value)} characters long: at most {item['ctx']['max_length']} are taken"] = None
        elif kind in ("missing", "too_short", "too_long", "tuple_type", "dict_type"):
            lines[f"{name} {show(value)} does not fit: {field.description}"] = None
        else:
            wanted = next((text for key, text in _KINDS.items() if kind.startswith(key)), f"valid ({item['msg']})")
            lines[f"{name} {show(value)} is not {wanted}{give}"] = None
    return "; ".join(lines)


def _list(words: Iterable[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
