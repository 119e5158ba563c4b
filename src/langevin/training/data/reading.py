"""A data set's format is recognised from what lies in its folder; whatever it is, a `PictureSet` comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langevin.errors import DataError
from langevin.images.pixels import to_rgb
from langevin.training.data import captions, classes, idx, metadata, shards
from langevin.training.data.buckets import bucket_sizes, nearest_bucket
from langevin.training.data.config import DataConfig
from langevin.training.data.files import Listing, Sample, list_files
from langevin.training.data.fitting import fit_to
from langevin.training.data.naming import name_colours
from langevin.training.data.pictures import PictureSet
from langevin.training.data.shapes import scene_samples

Reader = Callable[[Listing, list[str]], Iterator[Sample]]
"""Gives the samples and adds a line to the list for each file that cannot be used. Pictures are opened later, and
only those that are wanted."""

FORMATS: Mapping[str, tuple[Callable[[Listing], bool], Reader]] = {
    "tar shards": (shards.found, shards.samples),
    "idx files": (idx.found, idx.samples),
    "metadata.jsonl": (metadata.found, metadata.samples),
    "pictures with .txt captions": (captions.found, captions.samples),
    "pictures in class folders": (classes.found, classes.samples),
}


def recognise(listing: Listing) -> str:
    """The name of the format in `FORMATS`. Raises DataError where there is none, or more than one."""
    found = [name for name, (is_there, _) in FORMATS.items() if is_there(listing)]
    if metadata.found(listing) or captions.found(listing):  # both may use folders as they like
        found = [name for name in found if name != "pictures in class folders"]
    if len(found) > 1:
        raise DataError(f"{listing.folder} holds {' and '.join(found)}: keep one of them in a folder of its own")
    if found:
        return found[0]
    if pictures := listing.pictures:
        raise DataError(
            f"the pictures in {listing.folder} have no captions: write {Path(pictures[0]).with_suffix('.txt').name} "
            f"beside {pictures[0]}, or a metadata.jsonl, or put each class in a folder of its own"
        )
    raise DataError(f"there is no data set in {listing.folder}: give a folder with {', '.join(FORMATS)}")


def read_data(folder: Path, config: DataConfig) -> PictureSet:
    """Read the data set in `folder`, of any format in `FORMATS`; docs/data.md shows each.

    Nothing is ever unpickled, and nothing outside `folder` is read. What cannot be read is left out and named in
    `unreadable`. Raises DataError where there is no data set, formats are mixed, a key occurs twice, or no sample is
    left that `config` wants.
    """
    listing = list_files(folder)
    unreadable = [f"{name}: a link to a folder, which is not followed" for name in listing.links]
    return assemble(folder, FORMATS[recognise(listing)][1](listing, unreadable), config, unreadable)


def assemble(folder: Path, samples: Iterable[Sample], config: DataConfig, unreadable: list[str]) -> PictureSet:
    """The samples that are wanted, as a set; a line is added to `unreadable` for each that cannot be read. Raises
    DataError as `read_data` does."""
    sizes = bucket_sizes(config.size, config.buckets) if config.buckets else ((config.size, config.size),)
    found: dict[str, tuple[Mapping[str, Any], np.ndarray]] = {}
    taken: set[str] = set()
    for sample in samples:
        taken.add(str(sample.record.get("caption")).lower())
        if not config.wants(sample.record):
            continue
        if sample.key in found:
            raise DataError(f"the key {sample.key!r} of {sample.place} occurs twice in {folder}")
        try:
            image = to_rgb(sample.picture())
            image = fit_to(image, *sizes[nearest_bucket(*image.size, sizes)], config.fit)
        except DataError as error:
            unreadable.append(f"{sample.place}: {error}")
            continue
        found[sample.key] = {"key": sample.key, **sample.record}, np.asarray(image)
    lines = [_printable(line) for line in unreadable]
    if not found:
        why = f"; {len(lines)} could not be read, the first: {lines[0]}" if lines else ""
        raise DataError(
            f"none of the samples in {folder} is wanted by include={config.include} exclude={config.exclude}{why}"
        )
    if config.scenes is not None:
        for sample in scene_samples(config.scenes, len(found), config.size):
            if sample.key in found:
                raise DataError(
                    f"the key {sample.key!r} of data.scenes is one of {folder} too: give another scenes.seed"
                )
            found[sample.key] = {"key": sample.key, **sample.record}, np.asarray(sample.picture())
    keys = sorted(found)
    # In the order of the sizes, those without a picture left out: one tensor for each.
    shapes = sorted({found[k][1].shape for k in keys}, key=lambda shape: shape[1])
    bucket = [shapes.index(found[k][1].shape) for k in keys]
    parts = [_stacked([found[k][1] for k, b in zip(keys, bucket, strict=True) if b == i]) for i in range(len(shapes))]
    digest = hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass"))
    if config.buckets or config.flip:
        digest.update(repr((bucket, [tuple(part.shape) for part in parts], config.flip)).encode())
    for part in parts:
        digest.update(part.numpy().tobytes())
    records = [found[k][0] for k in keys]
    if config.colours is not None:
        for i, part in enumerate(parts):
            places = [place for place, b in enumerate(bucket) if b == i]
            named = name_colours(part, [records[place] for place in places], config.colours, taken)
            for place, record in zip(places, named, strict=True):
                records[place] = record
        digest.update(repr([record.get("colour") for record in records]).encode())
    times = torch.tensor([config.times(record) for record in records])
    if config.repeat:
        digest.update(repr(times.tolist()).encode())
    data = PictureSet(parts, records, digest.hexdigest(), lines, bucket=bucket, flip=config.flip, keys=keys)
    return data.subset(torch.arange(len(records)).repeat_interleave(times)) if bool((times > 1).any()) else data


def _stacked(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 N 3 H W of pictures H W 3."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _printable(line: str) -> str:
    """Names come from strangers: what would break the line or command the terminal is shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
