"""Batches prepared ahead of the steps that need them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

Samples = list[tuple[int, int]]
"""(epoch, index) pairs."""


class Part(NamedTuple):
    """What one forward and backward pass works on."""

    samples: Samples
    prepared: Any
    """What the objective's `prepare` gave; None where it has none."""


def batches(
    prepare: Callable[[Samples, int], Any] | None, parts: Callable[[int], list[Samples]], steps: range, workers: int
) -> Generator[tuple[int, list[Part]]]:
    """The parts of each step's batch in turn, prepared by so many threads at most two steps a thread ahead.

    `prepare` is a function of its arguments alone, so neither the number of threads nor their haste can be seen in
    the result. What it raises is raised here, at its step. Threads rather than processes: the pictures lie in memory,
    and torch and PIL let other threads run while they work.
    """
    if prepare is None or not workers:
        for step in steps:
            yield step, [Part(s, None if prepare is None else prepare(s, step)) for s in parts(step)]
        return
    waiting: deque[tuple[int, list[tuple[Samples, Future[Any]]]]] = deque()
    pool = ThreadPoolExecutor(workers, "prepare")
    try:
        for step in steps:
            waiting.append((step, [(s, pool.submit(prepare, s, step)) for s in parts(step)]))
            if len(waiting) > 2 * workers:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ready(step: int, futures: list[tuple[Samples, Future[Any]]]) -> tuple[int, list[Part]]:
    return step, [Part(samples, future.result()) for samples, future in futures]
