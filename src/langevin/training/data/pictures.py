"""What training sees of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
    keys: Sequence[str] = ()
    """What each picture is called in its data set: a path, or a name in a shard."""

    def __len__(self) -> int:
        return len(self.records)

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """float32 B 3 H W in [-1, 1]."""
        return self.pictures[torch.as_tensor(indices)].float() / 127.5 - 1
