"""Noise: one stream per image, from that image's seed, drawn on the CPU.

The numbers depend on the seed and on the shape of one image alone: not on the batch, the device, the dtype or the
order in which images are made.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import assert_never

import torch
from torch import Tensor

from langevin.errors import RequestError

SEED_LIMIT = 2**64
"""Seeds are 0 ... 2^64 - 1. PyTorch's CPU generator uses the lower 32 bits: seeds 2^32 apart give the same noise."""

_SPAN = 16
"""Brownian paths cover |log sigma| <= 16."""

_LEAVES = 2**16
"""Leaves of the Brownian tree in one unit of log sigma: noise levels are rounded to 2^-16 of themselves."""


class IntervalNoise(StrEnum):
    """What `Noise.between` returns."""

    PATH = "path"
    """Increments of one Brownian path per image: the same path whatever the number of steps."""
    STREAM = "stream"
    """The next independent draw, as in `Noise.step`."""


class Noise:
    """Standard normal noise for a batch of images.

    `initial()` is each stream's first draw and equals `torch.randn(1, C, H, W, generator=manual_seed(seed))`, unless
    draws before it are skipped.
    `step()` gives the draws after it, or those of a second stream. `between()` gives the noise of an interval of noise
    levels.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, ...],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        interval: IntervalNoise | str = IntervalNoise.PATH,
        step_seed_offset: int | None = None,
        skipped: tuple[int, int] = (0, 0),
        before: tuple[int, ...] | None = None,
    ) -> None:
        """seeds: one per image. shape: of one image, C H W. Numbers are drawn as float32 and then brought to `dtype`.

        step_seed_offset: None lets the steps continue the stream of the initial noise; with a number they have a
        stream of their own, seeded with the image's seed plus that number.

        skipped: how many draws of each stream go by before the initial noise, and how many between it and that of the
        first step: other programs spend them on something else. before: the shape of one more draw, which every stream
        gives first of all.

        Raises RequestError for a seed outside 0 ... 2^64 - 1 or an empty batch.
        """
        if not seeds:
            raise RequestError("noise for 0 images was asked for; give at least one seed")
        for seed in seeds:
            if not 0 <= seed < SEED_LIMIT:
                raise RequestError(f"seed {seed} is out of range; seeds are whole numbers from 0 to {SEED_LIMIT - 1}")
        self.seeds = tuple(operator.index(seed) for seed in seeds)  # refuses 1.5 instead of cutting it
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.dtype = dtype
        self.interval = IntervalNoise(interval)
        self.step_seed_offset = step_seed_offset
        self.skipped = skipped
        self.before = before
        self._streams: list[torch.Generator] | None = None
        self._paths = [_BrownianPath(seed, self.shape) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def select(self, images: slice) -> Noise:
        """The noise of some of the images, each stream at its start: image i alone has what it has in the batch."""
        return Noise(
            self.seeds[images],
            self.shape,
            device=self.device,
            dtype=self.dtype,
            interval=self.interval,
            step_seed_offset=self.step_seed_offset,
            skipped=self.skipped,
            before=self.before,
        )

    def fresh(self) -> Noise:
        """The same noise again, each stream at its start."""
        return self.select(slice(None))

    def initial(self) -> Tensor:
        """The first draw of every stream, B C H W. The same however often and whenever it is asked for."""
        streams = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self._pass_over(streams, self.skipped[0])
        return self._batch([_draw(stream, self.shape) for stream in streams])

    def step(self) -> Tensor:
        """The next draw of every stream after the first one, B C H W: independent of all others."""
        if self._streams is None:
            offset = self.step_seed_offset or 0
            self._streams = [torch.Generator().manual_seed((seed + offset) % SEED_LIMIT) for seed in self.seeds]
            if self.step_seed_offset is None:
                self._pass_over(self._streams, sum(self.skipped) + 1)  # 1: the initial noise
        return self._batch([_draw(stream, self.shape) for stream in self._streams])

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """Unit-variance noise of the interval from `sigma` down to `sigma_next` > 0, B C H W.

        With `IntervalNoise.PATH` it is `(W(b) - W(a)) / sqrt(b - a)` of one Brownian path W per image, in the clock
        1 / sigma^2. Noises of disjoint intervals are independent; those of an interval's parts add up to its own:
        `sqrt(c - a) n(a, c) = sqrt(b - a) n(a, b) + sqrt(c - b) n(b, c)`. The clock is that of the reverse SDE with
        eta = 1, where the noise in `x / sigma^2` is exactly `W(1 / sigma_next^2) - W(1 / sigma^2)`: a solver
        with more steps then follows the same realisation more closely.

        Raises RequestError for levels that are too close together, or outside 1e-7 ... 9e6.
        """
        match self.interval:
            case IntervalNoise.PATH:
                return self._batch([path.between(sigma, sigma_next) for path in self._paths])
            case IntervalNoise.STREAM:
                return self.step()
            case _:
                assert_never(self.interval)

    def _pass_over(self, streams: Sequence[torch.Generator], count: int) -> None:
        for stream in streams:
            if self.before is not None:
                _draw(stream, self.before)
            for _ in range(count):
                _draw(stream, self.shape)

    def _batch(self, images: list[Tensor]) -> Tensor:
        return torch.stack(images).to(self.device, self.dtype)


def _draw(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn((1, *shape), generator=generator)[0]


class _BrownianPath:
    """A Brownian path in the clock 1 / sigma^2, made on demand from its seed: nothing of it is kept but a cache.

    A binary tree over log(1 / sigma): the unit-variance increment z of a node is split between its halves by a
    rotation with the node's own noise n, `left = sqrt(p) z + sqrt(1 - p) n` and `right = sqrt(1 - p) z - sqrt(p) n`,
    where p is the left half's part of the node's clock (the Brownian bridge, Lévy's construction). n is seeded by a
    hash of the seed and the node (a virtual Brownian tree: Li et al. 2020, "Scalable Gradients for SDEs", section 4).
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.seed = seed
        self.shape = shape
        self._cache: dict[tuple[int, int], Tensor] = {}
        """The node noises of the last interval: the next one shares most of them."""

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """Unit-variance increment from `sigma` down to `sigma_next`, C H W."""
        start, end = _leaf(sigma), _leaf(sigma_next)
        if start >= end:
            raise RequestError(
                f"noise between sigma {sigma:.8g} and {sigma_next:.8g}: levels must fall by more than 1 part in "
                f"{_LEAVES}; use fewer steps or another grid"
            )
        used: dict[tuple[int, int], Tensor] = {}
        root = (-_SPAN * _LEAVES, _SPAN * _LEAVES)
        total = torch.zeros(self.shape)
        for weight, z in self._cover(*root, self._noise(0, 0, used), start, end, used):
            total += weight * z
        self._cache = used
        return total

    def _cover(
        self, low: int, high: int, z: Tensor, start: int, end: int, used: dict[tuple[int, int], Tensor]
    ) -> Iterator[tuple[float, Tensor]]:
        """The nodes that make up [start, end), each with the square root of its part of that interval's clock."""
        if start <= low and high <= end:
            yield math.sqrt(_clock(low, high, end) / _clock(start, end, end)), z
            return
        middle = (low + high) // 2
        p = 1 / (1 + math.exp((high - low) / _LEAVES))  # _clock(low, middle) / _clock(low, high)
        n = self._noise(low, high, used)
        if start < middle:
            yield from self._cover(low, middle, math.sqrt(p) * z + math.sqrt(1 - p) * n, start, end, used)
        if end > middle:
            yield from self._cover(middle, high, math.sqrt(1 - p) * z - math.sqrt(p) * n, start, end, used)

    def _noise(self, low: int, high: int, used: dict[tuple[int, int], Tensor]) -> Tensor:
        """The noise that belongs to one node, C H W; (0, 0) is the root's own increment."""
        node = (low, high)
        if node in self._cache:
            used[node] = self._cache[node]
        else:
            digest = hashlib.blake2b(f"{self.seed} {low} {high}".encode(), digest_size=8, person=b"brownian").digest()
            used[node] = _draw(torch.Generator().manual_seed(int.from_bytes(digest, "big")), self.shape)
        return used[node]


def _leaf(sigma: float) -> int:
    """Where `sigma` stands in the tree: log(1 / sigma) in whole leaves."""
    if not math.exp(-_SPAN) <= sigma <= math.exp(_SPAN):
        raise RequestError(
            f"noise between levels: sigma {sigma:g} is outside {math.exp(-_SPAN):.2g} ... {math.exp(_SPAN):.2g}; "
            "use a grid within"
        )
    return round(-math.log(sigma) * _LEAVES)


def _clock(low: int, high: int, unit: int) -> float:
    """Length of [low, high) in the clock 1 / sigma^2, relative to the clock's value at `unit`."""
    return math.exp(2 * (high - unit) / _LEAVES) - math.exp(2 * (low - unit) / _LEAVES)
