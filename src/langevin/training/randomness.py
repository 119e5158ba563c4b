"""Random streams that are functions of what they are for, so that a run resumes to the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 64-bit seed that depends on the seed and the purpose alone: ("noise", step), ("caption", epoch, index)..."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator with the seed of `seed_for`."""
    return torch.Generator("cpu").manual_seed(seed_for(seed, *purpose))


def sample_generators(seed: int, purpose: str, step: int, samples: Sequence[tuple[int, int]]) -> list[torch.Generator]:
    """A generator for each (epoch, index) of a step's batch, the same wherever the batch is cut: in parts that are
    accumulated, over several devices."""
    return [generator(seed, purpose, step, epoch, index) for epoch, index in samples]


def normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 [B, *shape], row i from generator i."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of the samples in one epoch, int64 [count]: a permutation."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


class SampleOrder:
    """Which samples make up the batch of a step; epochs follow one another without dropping a remainder."""

    def __init__(self, seed: int, count: int) -> None:
        if count < 1:
            raise ValueError(f"an order needs at least one sample, got {count}")
        self.seed, self.count = seed, count
        self._cached: tuple[int, Tensor] | None = None

    def batch(self, step: int, size: int) -> list[tuple[int, int]]:
        """(epoch, index) of each sample of the step's batch."""
        pairs = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, self.count)
            if self._cached is None or self._cached[0] != epoch:
                self._cached = (epoch, epoch_order(self.seed, epoch, self.count))
            pairs.append((epoch, int(self._cached[1][place])))
        return pairs
