"""JSON configuration files read field by field, with errors that name file and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from langevin.errors import CheckpointError

MAX_BYTES = 4_000_000
T = TypeVar("T")
Types = type | tuple[type, ...]


class Fields:
    """The fields of one JSON object. Each is taken once; `finish` looks at what nobody took."""

    def __init__(self, data: Mapping[str, Any], label: str) -> None:
        self.label = label
        self._data = dict(data)

    @classmethod
    def of(cls, path: Path) -> Fields:
        """CheckpointError where the file is missing, too large or no JSON object."""
        return cls(read_object(path), str(path))

    def error(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.label}: {name}: {what}")

    def take(self, name: str, default: Any) -> Any:
        return self._data.pop(name, default)

    def get(self, name: str, types: Types, default: Any) -> Any:
        """A field of a type; the default where it is absent, not where it is null."""
        value = self._data.pop(name, default)
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise self.error(name, f"{_show(value)} is not {_type_name(types)}")
        return value

    def optional(self, name: str, types: Types) -> Any:
        """A field that may be absent or null."""
        if self._data.get(name) is None:
            self._data.pop(name, None)
            return None
        return self.get(name, types, None)

    def integers(self, name: str) -> tuple[int, ...]:
        value = self._data.pop(name, None)
        if not isinstance(value, list) or not value or not all(type(v) is int and v > 0 for v in value):
            raise self.error(name, f"{_show(value)} is not a list of whole numbers above 0")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._data.pop(name, None)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.error(name, f"{_show(value)} is not a list of names")
        return tuple(value)

    def choose(self, name: str, value: object, known: Mapping[str, T]) -> T:
        """The meaning of a word; an unknown one is an error that names it."""
        if not isinstance(value, str) or value not in known:
            raise self.error(name, f"{_show(value)} is not known; known: {', '.join(dict.fromkeys(known))}")
        return known[value]

    def require_class(self, *names: str) -> None:
        found = self.take("_class_name", None)
        if found not in names:
            expected = names[0] if len(names) == 1 else f"one of {', '.join(sorted(names))}"
            raise self.error("_class_name", f"{_show(found)}; expected {expected}")

    def made(self, cls: type[T], **values: Any) -> T:
        """A configuration; what it refuses is this file's fault."""
        try:
            return cls(**values)
        except ValueError as error:
            raise CheckpointError(f"{self.label}: {error}") from None

    def rest(self) -> list[str]:
        """The fields that nobody took and that say something."""
        return [name for name, value in self._data.items() if not name.startswith("_") and value not in (None, False)]

    def finish(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Whatever was not taken must be null, false or one of its neutral values."""
        for name in self.rest():
            value = self._data[name]
            if value not in neutral.get(name, ()):
                known = " or ".join(map(_show, neutral[name])) if name in neutral else "not known here"
                raise self.error(name, f"{_show(value)} is not supported ({known})")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return parse_object(read_text(path), str(path))


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes; a configuration has at most {MAX_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not there; the model folder is incomplete") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text; download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def parse_object(text: str, label: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: not JSON: {str(error)[:120]}; download it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{label}: a JSON {type(data).__name__}; expected an object")
    return data


def _show(value: object) -> str:
    return json.dumps(value)[:80]


def _type_name(types: Types) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names[types[-1] if isinstance(types, tuple) else types]
