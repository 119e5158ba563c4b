"""idx files, the format of MNIST and its family (LeCun, Cortes & Burges 1998), plain or compressed with gzip.

`train-images-idx3-ubyte.gz` goes with `train-labels-idx1-ubyte.gz`; what stands before `images` is the split. A file
`labels.txt` may name the classes, one a line; without it a label's digits are the caption.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from langevin.errors import DataError
from langevin.images.pixels import MAX_PIXELS
from langevin.training.data.files import Listing, Sample

NAMES = "labels.txt"
_IMAGES = re.compile(r"(?P<split>[^/]*?)-?images[-.]idx3-ubyte(\.gz)?")
_LARGEST = 2**30
"""Bytes of one file's values: 2^30 are twenty times MNIST's."""


def found(listing: Listing) -> bool:
    """Whether there is a file of images in the folder itself."""
    return any(_IMAGES.fullmatch(name) for name in listing.names)


def samples(listing: Listing, unreadable: list[str]) -> Iterator[Sample]:
    """Each picture, grey; record: `caption`, `label`, `split`.

    The files are few and each holds many pictures, so that one which is wrong is an error: DataError.
    """
    names = class_names(listing)
    splits: set[str] = set()
    for name in listing.names:
        if (match := _IMAGES.fullmatch(name)) is None:
            continue
        split = match["split"]
        if split in splits:
            raise DataError(f"{listing.folder} holds {split}-images twice: remove {name} or its twin")
        splits.add(split)
        labels = read_idx(listing.folder / _labels_of(name, listing), 1)  # N
        images = read_idx(listing.folder / name, 3)  # N H W
        if len(images) != len(labels):
            raise DataError(f"{name} holds {len(images)} images, its labels are {len(labels)}")
        if names and len(labels) and labels.max() >= len(names):
            raise DataError(f"{NAMES} names {len(names)} classes, the labels of {name} go up to {labels.max()}")
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            record = {"caption": names[label] if names else str(label), "label": label, "split": split}
            yield Sample(f"{split}/{i:08d}", record, f"{name}: {i}", partial(Image.fromarray, image))


def class_names(listing: Listing) -> list[str]:
    """The lines of `labels.txt`; empty where there is none."""
    if NAMES not in listing.names:
        return []
    try:
        lines = listing.read(NAMES, 2**20).decode("utf-8-sig").split("\n")
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{listing.folder / NAMES} cannot be read: {error}") from None
    names = [" ".join(line.split()) for line in lines]
    while names and not names[-1]:
        names.pop()
    if not all(names):
        raise DataError(f"{listing.folder / NAMES} has an empty line: the line of label {names.index('')}")
    return names


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of a file with so many axes, uint8.

    Raises DataError for another type or number of axes, a length that differs from what the header says, or more
    than 2^30 values; no more is read than the header says, however far a compressed file would expand.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _values(path, file, axes)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _values(path: Path, file: BinaryIO, axes: int) -> np.ndarray:
    header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{path} is not an idx file of unsigned bytes with {axes} axes: it begins {header[:4].hex()}")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
    count = 1
    for length in shape:  # Python's integers: they do not wrap round
        count *= length
    if count == 0 or count > _LARGEST or (axes == 3 and shape[1] * shape[2] > MAX_PIXELS):
        raise DataError(f"{path} says it holds {' x '.join(map(str, shape))} values: 1 to {_LARGEST} are read")
    data = bytearray()
    while len(data) <= count and (part := file.read(min(2**20, count + 1 - len(data)))):
        data += part
    if len(data) != count:
        more = "more" if len(data) > count else f"{len(data)}"
        raise DataError(f"{path} holds {more} values, its header says {count}")
    return np.frombuffer(bytes(data), np.uint8).reshape(shape)


def _labels_of(images: str, listing: Listing) -> str:
    stem = images.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for name in (stem, f"{stem}.gz"):
        if name in listing.names:
            return name
    raise DataError(f"{listing.folder / images} has no labels beside it: {stem} or {stem}.gz")
