"""WebDataset shards: tar files in which the members `KEY.png`, `KEY.json`, `KEY.txt`, `KEY.cls` are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from langevin.errors import DataError
from langevin.images.pixels import open_picture
from langevin.training.data.files import (
    LARGEST_PICTURE,
    LARGEST_TEXT,
    PICTURES,
    Listing,
    Sample,
    one_line,
    record_fault,
    with_captions,
)

_TOLD = (".json", ".txt", ".cls")


def found(listing: Listing) -> bool:
    """Whether anything below the folder is called `*.tar`."""
    return bool(_shards(listing))


def samples(listing: Listing, unreadable: list[str]) -> Iterator[Sample]:
    """For each key its picture. The record is the `.json`; a caption that it lacks is the `.txt`, a label the `.cls`
    (a whole number; where there is no caption, its digits are one).

    Members of other kinds (links, devices, other suffixes) are passed over. Raises DataError for a shard that is not
    a tar file, and for a key that occurs twice.
    """
    for shard in _shards(listing):
        for key, record, data in _members(shard, unreadable):
            yield Sample(key, record, f"{shard.name}: {key}", partial(open_picture, data))


def _shards(listing: Listing) -> list[Path]:
    return sorted(p for p in listing.folder.glob("**/*.tar") if not p.name.startswith("."))


def _members(shard: Path, unreadable: list[str]) -> list[tuple[str, Mapping[str, Any], bytes]]:
    pictures: dict[str, bytes] = {}
    told: dict[str, dict[str, bytes]] = {}
    bad: set[str] = set()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                key, kind = str(path.with_suffix("")), path.suffix.lower()
                if member.size < 0:  # the next header would be looked for before this one, for ever
                    raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
                if not member.isreg() or kind not in (*PICTURES, *_TOLD):
                    continue
                limit = LARGEST_TEXT if kind in _TOLD else LARGEST_PICTURE
                if member.size > limit:
                    unreadable.append(f"{shard.name}: {member.name}: {member.size} bytes, more than {limit}")
                    bad.add(key)
                    continue
                file = tar.extractfile(member)
                data = b"" if file is None else file.read()
                if kind in told.get(key, ()) if kind in _TOLD else key in pictures:
                    raise DataError(f"the key {key!r} occurs twice in {shard.name}")
                if kind in _TOLD:
                    told.setdefault(key, {})[kind] = data
                else:
                    pictures[key] = data
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise DataError(f"{shard} is not a readable tar file: {error}") from None
    samples: list[tuple[str, Mapping[str, Any], bytes]] = []
    for key in sorted((pictures.keys() | told.keys()) - bad):
        if key not in told:
            unreadable.append(f"{shard.name}: {key}: a picture without a record")
            continue
        try:
            record = _record(told[key])
        except DataError as error:
            unreadable.append(f"{shard.name}: {key}{error}")
            continue
        if key in pictures:
            samples.append((key, record, pictures[key]))
    return samples


def _record(members: Mapping[str, bytes]) -> Mapping[str, Any]:
    """What a sample's members say of it together. The DataError begins with the suffix of the member at fault."""
    record: Any = {}
    if ".json" in members:
        try:
            record = json.loads(members[".json"])
        except (ValueError, RecursionError) as error:
            raise DataError(f".json: {error}") from None
    if isinstance(record, dict) and ".cls" in members and "label" not in record:
        digits = members[".cls"].strip()
        if not digits.isdigit() or len(digits) > 9:
            raise DataError(f".cls: {digits[:20]!r} is not a label: give a whole number")
        record["label"] = int(digits)
    if isinstance(record, dict):
        record = with_captions(record)
    if isinstance(record, dict) and "caption" not in record:
        if ".txt" in members:
            try:
                record["caption"] = one_line(members[".txt"])
            except DataError as error:
                raise DataError(f".txt: {error}") from None
        elif ".cls" in members:
            record["caption"] = str(record["label"])
    if (fault := record_fault(record)) is not None:
        raise DataError(f"{next(s for s in _TOLD if s in members)}: {fault}")
    return dict(record)
