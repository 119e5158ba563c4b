"""Pictures with their captions beside them: `NAME.png` and `NAME.txt`, in folders of any depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from langevin.errors import DataError
from langevin.training.data.files import Listing, Sample


def found(listing: Listing) -> bool:
    """Whether at least one picture has a caption beside it."""
    names = set(listing.names)
    return any(_caption_of(picture) in names for picture in listing.pictures)


def samples(listing: Listing, unreadable: list[str]) -> Iterator[Sample]:
    """Each picture with a caption; its path is the key. A picture without one is named in `unreadable`."""
    names = set(listing.names)
    for picture in listing.pictures:
        name = _caption_of(picture)
        if name not in names:
            unreadable.append(f"{picture}: a picture without a caption: {name} is not there")
            continue
        try:
            record = {"caption": listing.text(name)}
        except DataError as error:
            unreadable.append(f"{name}: {error}")
            continue
        yield listing.sample(picture, record)


def _caption_of(picture: str) -> str:
    return str(PurePosixPath(picture).with_suffix(".txt"))
