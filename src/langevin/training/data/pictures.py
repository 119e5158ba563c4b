"""What training sees of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langevin.errors import DataError
from langevin.training.data.config import DataConfig


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures with their records, in the order of their keys."""

    pictures: Tensor
    """uint8 N 3 H W."""
    records: Sequence[Mapping[str, Any]]
    """Of each picture at least `caption`; `label` (int) where the format has classes; what else its record says."""
    fingerprint: str
    """SHA-256 over keys and pixels: says whether two runs saw the same data."""
    unreadable: Sequence[str] = ()
    """One line for each file or member that could not be read, with the reason."""

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """float32 B 3 H W in [-1, 1]."""
        return self.pictures[torch.as_tensor(indices)].float() / 127.5 - 1

    def only(self, include: Mapping[str, tuple[str, ...]]) -> PictureSet:
        """The samples each of whose fields in `include` has one of the values. Raises DataError where none has."""
        wanted = DataConfig(include=dict(include))
        kept = [i for i, record in enumerate(self.records) if wanted.wants(record)]
        if not kept:
            raise DataError(f"none of the {len(self)} pictures has {json.dumps(include)}: ask for others")
        name = hashlib.sha256(f"{self.fingerprint} {json.dumps(include, sort_keys=True)}".encode()).hexdigest()
        return PictureSet(self.pictures[kept], [self.records[i] for i in kept], name)
