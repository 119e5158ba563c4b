"""A folder for each class: its name is the caption, its place in the alphabet the label."""

from __future__ import annotations

from collections.abc import Iterator

from langevin.training.data.files import Listing, Sample


def found(listing: Listing) -> bool:
    """Whether all pictures lie in folders."""
    return bool(listing.pictures) and all("/" in name for name in listing.pictures)


def samples(listing: Listing, unreadable: list[str]) -> Iterator[Sample]:
    """Each picture below a class folder, at any depth; its path is the key.

    Labels count the folders that hold pictures, from 0, in the order of their names, whether wanted or not.
    """
    names = sorted({_class_of(picture) for picture in listing.pictures})
    for picture in listing.pictures:
        name = _class_of(picture)
        yield listing.sample(picture, {"caption": name, "label": names.index(name)})


def _class_of(picture: str) -> str:
    return picture.partition("/")[0]
