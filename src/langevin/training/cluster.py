"""Work on the data set over a Ray cluster (extra `cluster`): encoding, not training, which is torchrun's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from langevin.errors import RequestError
from langevin.training.caching import Shard, Spread


def over_cluster(address: str, device: str) -> Spread:
    """Runs pieces of work as Ray tasks on the cluster at `address`, each with this process's number of threads or, if
    `device` is a GPU, with one GPU. Raises RequestError where Ray is missing or nobody answers.

    The other machines need langevin installed. Pieces and results travel through Ray; files are written here.
    """
    if find_spec("ray") is None:
        raise RequestError("cache.cluster needs ray, which is missing: pip install ray")

    def spread(
        work: Callable[[Any], Shard], piece: Callable[[int], Any], count: int, keep: Callable[[int, Shard], None]
    ) -> None:
        import ray

        if not count:
            return
        if not ray.is_initialized():
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                why = " ".join(str(error).split())
                raise RequestError(f"cache.cluster {address!r} does not answer: {why[:200]}") from None
        threads = torch.get_num_threads()
        gpus = 1 if device.startswith("cuda") else 0
        task = ray.remote(num_cpus=1 if gpus else threads, num_gpus=gpus)(_task)
        shared = ray.put(work)
        # No more pieces travel at once than can be worked on, and as many again that wait.
        places = ray.cluster_resources().get("GPU" if gpus else "CPU", 1) / (1 if gpus else threads)
        running: dict[Any, int] = {}
        for i in range(count):
            if len(running) >= max(2, 2 * int(places)):
                _take(ray, running, keep)
            running[task.remote(shared, piece(i), threads)] = i
        while running:
            _take(ray, running, keep)

    return spread


def _take(ray: Any, running: dict[Any, int], keep: Callable[[int, Shard], None]) -> None:
    """Wait for one of the tasks and keep its result."""
    done, _ = ray.wait(list(running), num_returns=1)
    keep(running.pop(done[0]), ray.get(done[0]))


def _task(work: Callable[[Any], Shard], piece: Any, threads: int) -> Shard:
    torch.set_num_threads(threads)
    return work(piece)
