"""Pictures to be measured: with captions where the folder has them, else without."""

from __future__ import annotations

from pathlib import Path

from langevin.errors import DataError
from langevin.training.data import captions, metadata
from langevin.training.data.config import DataConfig
from langevin.training.data.files import LARGEST_PICTURE, Listing, list_files
from langevin.training.data.pictures import PictureSet
from langevin.training.data.reading import assemble, read_data


def first_size(folder: Path) -> int:
    """Height and width of the first picture of a folder. Raises DataError where it is not square, or there is none."""
    from langevin.images.pixels import open_picture

    listing = _pictures(folder)
    name = listing.pictures[0]
    width, height = open_picture(listing.read(name, LARGEST_PICTURE)).size
    if width != height:
        raise DataError(f"{folder / name} has {width} x {height} pixels: give --size, at which all are measured")
    return width


def read_pictures(folder: Path, size: int) -> PictureSet:
    """All pictures of a folder at one size, in the order of their names; their records are empty unless the folder is
    a data set with captions. Raises DataError where one cannot be read: a set is measured whole or not at all."""
    listing = _pictures(folder)
    config = DataConfig(size=size)
    if metadata.found(listing) or captions.found(listing):
        data = read_data(folder, config)
    else:
        data = assemble(folder, (listing.sample(name, {}) for name in listing.pictures), config, [])
    if data.unreadable:
        raise DataError(f"{len(data.unreadable)} pictures of {folder} cannot be measured: {data.unreadable[0]}")
    return data


def _pictures(folder: Path) -> Listing:
    listing = list_files(folder)
    if not listing.pictures:
        raise DataError(f"there are no pictures in {folder}")
    return listing
