"""A run that is killed again and again: python -m tests.training.killing FOLDER KILLS WORKERS [SEED].

Each sitting is a process of its own, which SIGKILL ends at a random moment: after a random number of steps and a random
part of the time that a step takes, so that it falls into a forward pass, a save, the removal of an old checkpoint. The
runs that come to their end must have the SHA-256 of one that nobody disturbed. Prints a line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # what optimisers load at their first step: here once, not in every process
from tests.training.small import Prepared

from langevin.training import metrics
from langevin.training.config import Average, LoopConfig
from langevin.training.loop import train

CONFIG = LoopConfig(
    steps=60, batch_size=7, learning_rate=0.02, warmup=5, save_every=3, sample_every=30, log_every=4,
    precision="float32", averages={"fast": Average(decay=0.9), "slow": Average(decay=0.99)},
)  # fmt: skip


def sitting(run: Path, workers: int) -> tuple[int, int]:
    """Begin or go on with a run in a new process: its id, and a pipe that gets a byte after each step."""
    reading, writing = os.pipe()
    if process := os.fork():
        os.close(writing)
        return process, reading
    torch.set_num_threads(1)
    config = CONFIG.model_copy(update={"workers": workers})
    for _ in train(Prepared(), config, run, seed=0, resume=True):
        os.write(writing, b".")
    os._exit(0)


def finish(run: Path, workers: int) -> float:
    """Run to the end undisturbed; seconds."""
    began = time.perf_counter()
    process, pipe = sitting(run, workers)
    os.close(pipe)
    assert os.waitpid(process, 0)[1] == 0
    return time.perf_counter() - began


def digest(run: Path) -> str:
    """SHA-256 of weights, both averages, optimiser and what goes with them, of the last checkpoint."""
    last = run / "checkpoints" / f"{CONFIG.steps:08d}"
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(last.iterdir()))).hexdigest()


def kill_once(run: Path, workers: int, chance: random.Random, step_time: float) -> bool:
    """Whether it was killed: a run that is nearly done may come to its end first."""
    process, pipe = sitting(run, workers)
    for _ in range(chance.randrange(8)):
        if not os.read(pipe, 1):
            break
    select.select([], [], [], chance.uniform(0, 2 * step_time))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(pipe)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def main(folder: Path, kills: int, workers: int, seed: int = 0) -> dict[str, object]:
    chance = random.Random(seed)
    step_time = finish(folder / "whole", 0) / CONFIG.steps
    expected = digest(folder / "whole")
    done, runs, found = 0, 0, set()
    while done < kills:
        run = folder / f"run-{runs}"
        for _ in range(10):
            if done < kills:
                done += kill_once(run, workers, chance, step_time)
        finish(run, workers)
        steps = [row["step"] for row in metrics.read(run / "metrics.jsonl")]
        assert steps == [row["step"] for row in metrics.read(folder / "whole" / "metrics.jsonl")], steps
        found.add(digest(run))
        runs += 1
    return {"kills": done, "runs": runs, "workers": workers, "same": found == {expected}, "sha256": expected}


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(int, sys.argv[4:]))
    print(json.dumps(result))  # noqa: T201
    sys.exit(not result["same"])
