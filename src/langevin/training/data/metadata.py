"""`metadata.jsonl`: a line for each picture, with its `file_name`, its `text` or `caption`, and any further fields.

The caption may be a list of texts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from langevin.errors import DataError
from langevin.training.data.files import LARGEST_TEXT, Listing, Sample, record_fault, with_captions

NAME = "metadata.jsonl"
_LARGEST = 2**30


def found(listing: Listing) -> bool:
    """Whether it lies in the folder itself."""
    return NAME in listing.names


def samples(listing: Listing, unreadable: list[str]) -> Iterator[Sample]:
    """Each picture that the file names; its path is the key, and the line's other fields are its record.

    A picture that no line names is listed in `unreadable`. Raises DataError for a name that occurs twice.
    """
    named: set[str] = set()
    try:
        lines = io.BytesIO(listing.read(NAME, _LARGEST))
    except DataError as error:
        raise DataError(f"{listing.folder / NAME} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, record = _row(line)
        except DataError as error:
            unreadable.append(f"{NAME}, line {number}: {error}")
            continue
        if name in named:
            raise DataError(f"{NAME}, line {number}: {name!r} is named for the second time")
        named.add(name)
        if (fault := record_fault(record)) is None:
            yield listing.sample(name, record)
        else:
            unreadable.append(f"{NAME}, line {number}: {name}: {fault}")
    unreadable += [f"{name}: a picture that {NAME} does not name" for name in listing.pictures if name not in named]


def _row(line: bytes) -> tuple[str, dict[str, Any]]:
    if len(line) > LARGEST_TEXT:
        raise DataError(f"{len(line)} bytes, more than {LARGEST_TEXT}")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from None
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise DataError("no file_name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{name!r} leads out of the data set's folder")
    record = {k: v for k, v in row.items() if k != "file_name"}
    if "caption" not in record and "text" in record:
        record["caption"] = record.pop("text")
    return str(path), with_captions(record)
