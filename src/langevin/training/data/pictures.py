"""What training sees of a data set."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError
from langevin.training.data.config import DataConfig
from langevin.training.randomness import generator

_SIDED = re.compile(r"\b(left|right|clockwise|anticlockwise|counterclockwise)(most|wards?|[- ]?hand(ed)?)?\b", re.I)
"""Words that are wrong of a mirrored picture."""


class PictureSet:
    """Pictures with their records, in the order of their keys: all of one size, or each of its bucket's."""

    def __init__(
        self,
        pictures: Tensor | Sequence[Tensor],
        records: Sequence[Mapping[str, Any]],
        fingerprint: str,
        unreadable: Sequence[str] = (),
        *,
        bucket: Sequence[int] | Tensor | None = None,
        flip: float = 0.0,
        keys: Sequence[str] = (),
    ) -> None:
        """pictures: uint8 N 3 H W; with `bucket`, which says for each sample in which it lies, one tensor a bucket,
        each with its samples in their order. flip: the share of views that are mirrored."""
        self.parts: tuple[Tensor, ...] = (pictures,) if isinstance(pictures, Tensor) else tuple(pictures)
        """uint8 M 3 H W for each bucket, at least one."""
        self.records = records
        """Of each picture at least `caption`, and `captions` where it has several; `label` (int) where the format has
        classes; what else its record says."""
        self.fingerprint = fingerprint
        """SHA-256 over keys and pixels: says whether two runs saw the same data."""
        self.unreadable = unreadable
        """One line for each file or member that could not be read, with the reason."""
        self.keys = keys
        """What each picture is called in its data set: a path, or a name in a shard."""
        self.bucket = torch.zeros(len(records), dtype=torch.int64) if bucket is None else torch.as_tensor(bucket)
        """int64 [N]: which of `parts` each sample lies in."""
        self.flip = flip
        counts = torch.bincount(self.bucket, minlength=len(self.parts)).tolist()
        if counts != [len(part) for part in self.parts]:
            raise ValueError(f"buckets of {[len(p) for p in self.parts]} pictures, the samples are {counts}")
        self.row = torch.zeros(len(records), dtype=torch.int64)
        """int64 [N]: each sample's place in its bucket."""
        for i, count in enumerate(counts):
            self.row[self.bucket == i] = torch.arange(count)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def pictures(self) -> Tensor:
        """uint8 N 3 H W. ValueError where there are several sizes."""
        if len(self.parts) > 1:
            raise ValueError(f"the pictures have {len(self.parts)} sizes: there is no one tensor of them")
        return self.parts[0]

    def images(self, indices: Sequence[int] | Tensor, flipped: Tensor | None = None) -> Tensor:
        """float32 B 3 H W in [-1, 1], those mirrored for which `flipped` (bool [B]) is true. ValueError where they lie
        in several buckets."""
        indices = torch.as_tensor(indices)
        buckets = self.bucket[indices].unique().tolist()
        if len(buckets) > 1:
            raise ValueError(f"samples of the buckets {buckets} do not go into one batch")
        images = self.parts[buckets[0] if buckets else 0][self.row[indices]].float() / 127.5 - 1
        if flipped is not None and bool(flipped.any()):
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        return images

    def squares(self, indices: Sequence[int] | Tensor, side: int) -> Tensor:
        """float32 B 3 S S in [-1, 1], of any buckets; see `squared`."""
        indices = torch.as_tensor(indices)
        out = torch.empty(len(indices), 3, side, side)
        for bucket in self.bucket[indices].unique():
            here = self.bucket[indices] == bucket
            out[here] = squared(self.images(indices[here]), side)
        return out

    def flips(self, samples: Sequence[tuple[int, int]], seed: int) -> Tensor:
        """Which of the (epoch, index) pairs are seen mirrored, bool [B]: a function of seed, epoch and index. A picture
        whose captions or keywords speak of left or right, or of a turn, never is."""
        if not self.flip:
            return torch.zeros(len(samples), dtype=torch.bool)
        return torch.tensor(
            [
                not self._sided[i] and float(torch.rand((), generator=generator(seed, "flip", epoch, i))) < self.flip
                for epoch, i in samples
            ]
        )

    def views(self, samples: Sequence[tuple[int, int]], seed: int) -> Tensor:
        """The pictures of a step's (epoch, index) pairs as they are to be seen, float32 B 3 H W in [-1, 1]."""
        return self.images([i for _, i in samples], self.flips(samples, seed))

    def only(
        self, include: Mapping[str, tuple[str, ...]], exclude: Mapping[str, tuple[str, ...]] | None = None
    ) -> PictureSet:
        """The samples each of whose fields in `include` has one of the values, and none of whose in `exclude` has.
        Raises DataError where there is none."""
        wanted = DataConfig(include=dict(include), exclude=dict(exclude or {}))
        kept = [i for i, record in enumerate(self.records) if wanted.wants(record)]
        if not kept:
            without = f" and not {json.dumps(exclude)}" if exclude else ""
            raise DataError(f"none of the {len(self)} pictures has {json.dumps(include)}{without}: ask for others")
        some = self.subset(kept)
        name = f"{self.fingerprint} {json.dumps(include, sort_keys=True)}"
        if exclude:
            name += f" {json.dumps(exclude, sort_keys=True)}"
        some.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        return some

    def subset(self, indices: Sequence[int] | Tensor) -> PictureSet:
        """Some of the samples, in this order and as often as they are named, without the buckets that none of them lies
        in; they keep the fingerprint of the whole."""
        indices = torch.as_tensor(indices)
        buckets, renumbered = self.bucket[indices].unique(return_inverse=True)
        return PictureSet(
            [self.parts[b][self.row[indices[renumbered == i]]] for i, b in enumerate(buckets.tolist())],
            [self.records[i] for i in indices.tolist()],
            self.fingerprint,
            self.unreadable,
            bucket=renumbered,
            flip=self.flip,
            keys=[self.keys[i] for i in indices.tolist()] if self.keys else (),
        )

    def some(self, count: int) -> Tensor:
        """Indices, int64 [count], of samples at equal distances in the fullest bucket."""
        fullest = max(range(len(self.parts)), key=lambda i: len(self.parts[i]))
        members = torch.nonzero(self.bucket == fullest).flatten()
        return members[torch.linspace(0, len(members) - 1, count).long()]

    @cached_property
    def _sided(self) -> list[bool]:
        return [
            any(_SIDED.search(str(t)) for t in (r["caption"], *r.get("captions", ()), *(r.get("keywords") or ())))
            for r in self.records
        ]


def squared(images: Tensor, side: int) -> Tensor:
    """`images` (B 3 H W) stretched to `side` x `side`, bilinearly with an antialiasing filter; as they are if they have
    that size."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
