"""One training loop for everything: a generator, so that the caller owns progress and cancellation."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from langevin.errors import NotFiniteError, RequestError
from langevin.training import checkpointing, metrics
from langevin.training.config import LoopConfig
from langevin.training.ema import ExponentialMovingAverage
from langevin.training.randomness import SampleOrder, seed_for

FREE = {"log_every", "save_every", "sample_every", "keep"}
"""Fields that may change when a run is resumed: they leave the weights as they are."""


class Objective(Protocol):
    """What is trained, on what, towards what."""

    @property
    def module(self) -> nn.Module:
        """Everything that trains."""

    @property
    def count(self) -> int:
        """Number of samples."""

    @property
    def facts(self) -> dict[str, Any]:
        """What has to be the same when a run is resumed (JSON)."""

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of (epoch, index) pairs, and what else is worth recording: 0-dimensional tensors."""

    def preview(self, module: nn.Module, path: Path) -> None:
        """Draw what the averaged weights can do into a PNG."""


class Order(Protocol):
    """Which samples each step sees."""

    def batch(self, step: int, size: int) -> list[tuple[int, int]]:
        """(epoch, index) of each sample of the step's batch: a function of the arguments."""


class TrainingStep(NamedTuple):
    """What the loop yields after each optimiser step."""

    step: int
    """Steps done."""
    metrics: dict[str, float] | None
    """The recorded figures, every `log_every` steps."""


def train(
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    resume: bool = False,
    order: Order | None = None,
) -> Generator[TrainingStep]:
    """Train to `config.steps`; state, metrics and previews go to `folder`. Without an `order` it is `SampleOrder`'s.

    A step is a function of the weights, the seed and its number, so that a resumed run goes on as if it had not
    stopped. Closing the generator saves a checkpoint first. Raises RequestError where the folder holds a run and
    `resume` is not set, CheckpointError where its newest checkpoint does not fit or cannot be read, and
    NotFiniteError when the loss or its gradient is not finite, with the last checkpoint kept. The global random
    stream, which dropout draws from, is seeded anew for every step.
    """
    checkpoints = folder / "checkpoints"
    if checkpointing.steps_saved(checkpoints) and not resume:
        raise RequestError(f"{folder} already holds a run: add --resume to go on with it, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    checkpointing.clear_unfinished(checkpoints)
    module = objective.module
    ema = ExponentialMovingAverage(module, config.ema_decay)
    optimizer = _optimizer(module, config)
    facts = {"loop": config.model_dump(mode="json", exclude=FREE), "seed": seed, **objective.facts}
    start = (
        checkpointing.load(checkpoints, module, ema, optimizer, facts)
        if resume and checkpointing.steps_saved(checkpoints)
        else 0
    )
    metrics.cut(folder / "metrics.jsonl", start)
    order = SampleOrder(seed, objective.count) if order is None else order
    parameters = [p for p in module.parameters() if p.requires_grad]
    saved, done = start, start
    module.train()

    def save() -> None:
        nonlocal saved
        checkpointing.save(checkpoints, done, module, ema, optimizer, facts, config.keep)
        saved = done

    try:
        began, seen = time.perf_counter(), 0
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            samples = order.batch(step, config.batch_size)
            torch.manual_seed(seed_for(seed, "step", step))
            with _attention(device):
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    loss, extra = objective.loss(samples, step)
                _finite("loss", loss, step, samples, saved)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            _finite("gradient's norm", norm, step, samples, saved)
            optimizer.step()
            ema.update(module, step)
            done = step + 1
            seen += len(samples)
            figures = None
            if done % config.log_every == 0 or done == config.steps:
                elapsed = time.perf_counter() - began
                figures = {
                    "loss": float(loss.detach()),
                    **{k: float(v) for k, v in extra.items()},
                    "gradient_norm": float(norm),
                    "learning_rate": learning_rate(config, step),
                    "samples_per_second": seen / elapsed,
                }
                began, seen = time.perf_counter(), 0
                metrics.record(folder / "metrics.jsonl", {"step": done, **figures})
            if done % config.save_every == 0 or done == config.steps:
                save()
            if done % config.sample_every == 0 or done == config.steps:
                objective.preview(ema.module, folder / f"preview-{done:08d}.png")
            yield TrainingStep(done, figures)
    except GeneratorExit:
        # Closed at the yield, between two steps. A step cut off in its middle would not be a state of the
        # uninterrupted run, so an exception from within leaves the last checkpoint as it is.
        if done > saved:
            save()
        raise


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a half cosine down to `final_rate` (Loshchilov & Hutter 2017, equation 5)."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    through = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (
        config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * min(1.0, through))) / 2
    )


def _finite(what: str, value: Tensor, step: int, samples: list[tuple[int, int]], saved: int) -> None:
    if not torch.isfinite(value):
        kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
        raise NotFiniteError(
            f"the {what} is {float(value.detach())} at step {step} (samples {[i for _, i in samples][:8]} ...); "
            f"{kept}: lower loop.learning_rate and start again"
        )


def _attention(device: str) -> AbstractContextManager[None]:
    """On the CPU the backward pass of torch's flash attention is slower than plain matrix products at the few
    tokens of a small model (measured: 72 against 79 images/s for the emoji recipe's U-Net on two cores)."""
    cpu = torch.device(device).type == "cpu"
    manager: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if cpu else nullcontext()
    return manager


def _optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
