"""The order of samples in buckets: each batch comes from one."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin.training.randomness import generator


class BucketOrder:
    """Which samples make up the batch of a step, all of one bucket; a function of (seed, step) and the batch's size.

    Each bucket is a stream of its own: its samples in a new order every epoch, the epochs one after the other without
    dropping a remainder, cut into batches. So every sample is seen once in each of its bucket's epochs. Over N steps,
    N being the number of samples, a bucket of n samples gives n batches: one at a random place in each n-th part of
    the N steps (stratified sampling), so that no bucket hurries ahead of the others.
    """

    def __init__(self, seed: int, bucket: Tensor) -> None:
        """bucket: int64 [N], the bucket of each sample, from 0."""
        if not len(bucket):
            raise ValueError("an order needs at least one sample, got 0")
        self.seed = seed
        self.members = [torch.nonzero(bucket == b).flatten() for b in range(int(bucket.max()) + 1)]
        """The samples of each bucket."""
        self.count = len(bucket)
        self._turns: tuple[int, Tensor] | None = None
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def batch(self, step: int, size: int) -> list[tuple[int, int]]:
        """(epoch, index) of each sample of the step's batch."""
        bucket, number = self.turn(step)
        members = self.members[bucket]
        pairs = []
        for position in range(number * size, (number + 1) * size):
            epoch, place = divmod(position, len(members))
            if bucket not in self._orders or self._orders[bucket][0] != epoch:
                stream = generator(self.seed, "order", epoch, bucket)
                self._orders[bucket] = (epoch, members[torch.randperm(len(members), generator=stream)])
            pairs.append((epoch, int(self._orders[bucket][1][place])))
        return pairs

    def turn(self, step: int) -> tuple[int, int]:
        """The step's bucket, and how many of the steps before it were that bucket's."""
        cycle, place = divmod(step, self.count)
        if self._turns is None or self._turns[0] != cycle:
            self._turns = (cycle, self._cycle(cycle))
        turns = self._turns[1]
        bucket = int(turns[place])
        return bucket, cycle * len(self.members[bucket]) + int((turns[:place] == bucket).sum())

    def _cycle(self, cycle: int) -> Tensor:
        """The buckets of N steps, int64 [N]."""
        jitter = torch.rand(self.count, generator=generator(self.seed, "buckets", cycle), dtype=torch.float64)
        counts = [len(m) for m in self.members]
        start = torch.cat([torch.arange(n) for n in counts])
        length = torch.cat([torch.full((n,), n) for n in counts])
        names = torch.cat([torch.full((n,), b) for b, n in enumerate(counts)])
        return names[torch.argsort((start + jitter) / length, stable=True)]
