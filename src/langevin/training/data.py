"""Captioned pictures from WebDataset tar shards, held in memory at one size."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from langevin.errors import DataError
from langevin.images.pixels import open_picture, to_rgb
from langevin.training.config import Config

_PICTURES = (".png", ".webp", ".jpg", ".jpeg")
_LARGEST_MEMBER = 64 * 2**20


class DataConfig(Config):
    """Which samples of a data set are used, and at what size."""

    size: int = Field(64, ge=8, le=1024)
    """Width and height in pixels; pictures are resized by area averaging (`PIL.Image.BOX`) when that divides evenly,
    else by Lanczos. One that is not square is squeezed into a square."""
    include: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Keep a sample only if each of these fields of its record has one of the values."""
    exclude: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Leave a sample out if one of these fields has one of the values."""

    def wants(self, record: Mapping[str, Any]) -> bool:
        return all(record.get(k) in v for k, v in self.include.items()) and not any(
            record.get(k) in v for k, v in self.exclude.items()
        )


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures with their records, in the order of their keys."""

    pictures: Tensor
    """uint8 N 3 H W."""
    records: Sequence[Mapping[str, Any]]
    fingerprint: str
    """SHA-256 over keys and pixels: says whether two runs saw the same data."""
    unreadable: Sequence[str] = ()
    """One line for each member that could not be read, with the reason."""

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """float32 B 3 H W in [-1, 1]."""
        return self.pictures[torch.as_tensor(indices)].float() / 127.5 - 1


def read_shards(folder: Path, config: DataConfig) -> PictureSet:
    """Read every `*.tar` below `folder`: for each key one picture and one `.json` with at least a `caption`.

    Members of other kinds (links, devices, other suffixes) are passed over and nothing is ever unpickled. Raises
    DataError where there is no shard, or no sample that `config` wants.
    """
    shards = sorted(folder.glob("**/*.tar")) if folder.is_dir() else []
    if not shards:
        raise DataError(f"no .tar shard found in {folder}: give the folder that holds the data set's shards")
    found: dict[str, tuple[Mapping[str, Any], np.ndarray]] = {}
    unreadable: list[str] = []
    for shard in shards:
        for key, record, data in _members(shard, unreadable):
            if not config.wants(record):
                continue
            if key in found:
                raise DataError(f"the key {key!r} of {shard.name} occurs twice in {folder}")
            try:
                found[key] = record, _decode(data, config.size)
            except DataError as error:
                unreadable.append(f"{shard.name}: {key}: {error}")
    if not found:
        why = f"; {len(unreadable)} could not be read, the first: {unreadable[0]}" if unreadable else ""
        raise DataError(
            f"none of the samples in {folder} is wanted by include={config.include} exclude={config.exclude}{why}"
        )
    keys = sorted(found)
    pictures = torch.from_numpy(np.stack([found[k][1] for k in keys])).permute(0, 3, 1, 2).contiguous()
    digest = hashlib.sha256("\n".join(keys).encode())
    digest.update(pictures.numpy().tobytes())
    return PictureSet(pictures, [found[k][0] for k in keys], digest.hexdigest(), unreadable)


def _members(shard: Path, unreadable: list[str]) -> list[tuple[str, Mapping[str, Any], bytes]]:
    pictures: dict[str, bytes] = {}
    records: dict[str, Mapping[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                key = str(path.with_suffix(""))
                if not member.isreg() or path.suffix.lower() not in (*_PICTURES, ".json"):
                    continue
                if member.size > _LARGEST_MEMBER:
                    unreadable.append(f"{shard.name}: {member.name}: {member.size} bytes, more than {_LARGEST_MEMBER}")
                    continue
                file = tar.extractfile(member)
                data = b"" if file is None else file.read()
                if key in (records if path.suffix.lower() == ".json" else pictures):
                    raise DataError(f"the key {key!r} occurs twice in {shard.name}")
                if path.suffix.lower() != ".json":
                    pictures[key] = data
                    continue
                try:
                    record = json.loads(data)
                except (ValueError, RecursionError) as error:
                    unreadable.append(f"{shard.name}: {member.name}: {error}")
                    continue
                if (fault := _record_fault(record)) is None:
                    records[key] = record
                else:
                    unreadable.append(f"{shard.name}: {member.name}: {fault}")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard} is not a readable tar file: {error}") from error
    unreadable += [f"{shard.name}: {key}: a picture without a record" for key in pictures.keys() - records.keys()]
    return [(key, records[key], pictures[key]) for key in sorted(pictures.keys() & records.keys())]


def _record_fault(record: Any) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get("caption"), str) or not record["caption"].strip():
        return "no caption"
    if not isinstance(record.get("keywords", []), list | None):
        return "keywords is not a list"
    return None


def _decode(data: bytes, size: int) -> np.ndarray:
    image = to_rgb(open_picture(data))
    if image.size != (size, size):
        even = image.width % size == 0 and image.height % size == 0
        image = image.resize((size, size), Image.Resampling.BOX if even else Image.Resampling.LANCZOS)
    return np.asarray(image)
