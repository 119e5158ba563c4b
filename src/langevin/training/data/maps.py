"""Maps that belong to pictures: depth and classes, from files or, for drawn shapes, from what was drawn; hints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from langevin.errors import DataError
from langevin.images.maps import class_shares, depth_channel, to_classes, to_values
from langevin.images.pixels import open_picture, to_rgb
from langevin.training.data.files import LARGEST_PICTURE, PICTURES, list_files
from langevin.training.data.fitting import Fit, fit_to
from langevin.training.data.pictures import PictureSet
from langevin.training.data.shapes import SHAPES, coverage

SHAPE_CLASSES = ("background", *SHAPES)
"""The classes of drawn shapes, in the order of their numbers."""

T = TypeVar("T")


def depth_maps(data: PictureSet, folder: Path | None, size: int) -> Tensor:
    """float32 N 1 size size, larger is nearer, each from -1 to 1 (all -1 where it is the same everywhere).

    folder: a grey picture for each of the data set's, of the same name; values of any unit. None: drawn shapes, of
    which the larger is the nearer. Resized bicubically. Raises DataError where a map is missing or cannot be read.
    """
    found: Iterator[Tensor]
    if folder is None:
        found = (_shapes_depth(placed, data.pictures.shape[-1]) for placed in _placed(data))
    else:
        found = _read(data, folder, to_values)
    maps = []
    for values in found:
        maps.append(depth_channel(values[None, None], size, size))
    return torch.cat(maps)


def class_maps(data: PictureSet, folder: Path | None, size: int, classes: int, palette: tuple[str, ...] = ()) -> Tensor:
    """float32 N K size size: which share of the cell each of the K classes covers, adding up to 1.

    folder: a map for each of the data set's pictures, of the same name: see `to_classes`. None: drawn shapes, with the
    classes of SHAPE_CLASSES, and any further ones nowhere. Raises DataError where a map is missing or cannot be read.
    """
    found: Iterator[Tensor]
    if folder is None:
        if classes < len(SHAPE_CLASSES):
            raise DataError(f"condition.classes {classes}: drawn shapes have {len(SHAPE_CLASSES)}")
        found = (_shapes_classes(placed, data.pictures.shape[-1]) for placed in _placed(data))
    else:
        found = _read(data, folder, lambda picture: to_classes(picture, classes, palette))
    maps = []
    for numbers in found:
        one_hot = F.one_hot(numbers.long(), classes).permute(2, 0, 1)[None].float()
        maps.append(class_shares(one_hot, size, size))
    return torch.cat(maps)


def hint_pictures(data: PictureSet, folder: Path, fit: Fit) -> list[Tensor]:
    """uint8 M 3 H W for each of the data set's buckets: a picture of any mode from `folder` for each of the set's, of
    the same name, as large as that. Raises DataError where one is missing or cannot be read."""
    hints = [torch.empty_like(part) for part in data.parts]
    for i, hint in enumerate(_read(data, folder, to_rgb)):
        bucket = hints[int(data.bucket[i])]
        pixels = np.array(fit_to(hint, bucket.shape[-1], bucket.shape[-2], fit))
        bucket[int(data.row[i])] = torch.from_numpy(pixels).permute(2, 0, 1)
    return hints


def _read(data: PictureSet, folder: Path, convert: Callable[[Image.Image], T]) -> Iterator[T]:
    """The map of each picture, in their order."""
    listing = list_files(folder)
    names = {_stem(name): name for name in listing.pictures}
    for key in data.keys:
        name = names.get(_stem(key))
        if name is None:
            raise DataError(f"{folder} has no map for the picture {key}: name it {_stem(key)}.png")
        try:
            yield convert(open_picture(listing.read(name, LARGEST_PICTURE)))
        except DataError as error:
            raise DataError(f"{folder / name}: {error}") from None


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in PICTURES else name


Placed = list[tuple[str, float, float, float]]
"""Shape, centre, half width of each thing, in shares of the picture's width."""


def _placed(data: PictureSet) -> Iterator[Placed]:
    for i, record in enumerate(data.records):
        try:
            shapes = [str(thing["shape"]) for thing in record["things"]]
            boxes = [tuple(float(v) for v in box) for box in record["boxes"]]
            yield [(shape, x, y, radius) for shape, (x, y, radius) in zip(shapes, boxes, strict=True)]
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"picture {i} of the data has no map: give condition.maps, a folder with one for each picture"
            ) from None


def _covered(thing: tuple[str, float, float, float], size: int) -> np.ndarray:
    shape, x, y, radius = thing
    return coverage(shape, x * size, y * size, radius * size, size, size)


def _shapes_depth(placed: Placed, size: int) -> Tensor:
    depth = np.zeros((size, size))
    for thing in placed:
        depth = np.maximum(depth, _covered(thing, size) * thing[3])
    return torch.from_numpy(depth)


def _shapes_classes(placed: Placed, size: int) -> Tensor:
    numbers = np.zeros((size, size), dtype=np.uint8)
    for thing in placed:
        numbers[_covered(thing, size) >= 0.5] = SHAPE_CLASSES.index(thing[0])
    return torch.from_numpy(numbers)
