"""What each of several processes does in test_distributed.py: python -m torch.distributed.run ... several.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tests.training.small import Denoise, Regression, small_clip

from langevin.errors import NotFiniteError
from langevin.training import distributed
from langevin.training.config import LoopConfig
from langevin.training.loop import Objective, train
from langevin.training.recipes import RECIPES
from langevin.training.run import run_recipe

CONFIG = LoopConfig(
    steps=6, batch_size=8, learning_rate=1e-3, warmup=2, save_every=3, sample_every=6, log_every=2, clip=0.5,
    precision="float32",
)  # fmt: skip


def run(objective: Objective, folder: Path, steps: int | None = None, **changes: object) -> None:
    config = CONFIG.model_copy(update=changes)
    for step in (running := train(objective, config, folder, seed=0, resume=True)):
        if step.step == steps:
            running.close()


def main(folder: Path, shapes: Path) -> None:
    torch.set_num_threads(1)
    with distributed.processes("cpu"):
        run(Denoise(), folder / "ddp", accumulate=2)
        run(Denoise(), folder / "fsdp", parallel="fsdp", accumulate=2)
        run(Denoise(), folder / "one-then-two", parallel="fsdp")  # begun by one process
        run(Denoise(), folder / "two-then-one", parallel="fsdp", steps=4)
        run(small_clip(), folder / "clip")
        poisoned = Regression(poison=1 if distributed.rank() else None)
        try:
            run(poisoned, folder / "poisoned")
        except NotFiniteError as error:
            (folder / f"poisoned-{distributed.rank()}").write_text(str(error))
        recipe = RECIPES["emoji"]().smallest()
        run_recipe("emoji", recipe, shapes, folder / "recipe", stages=["autoencoder"], device="cpu", resume=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
