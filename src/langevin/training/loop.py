"""One training loop for everything: a generator, so that the caller owns progress and cancellation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from langevin.errors import RequestError
from langevin.training import checkpointing, distributed, metrics
from langevin.training.ahead import Part, Samples, batches
from langevin.training.blocks import compile_blocks, recompute
from langevin.training.checkpointing import State
from langevin.training.config import FREE, LoopConfig, Optimizer
from langevin.training.ema import ExponentialMovingAverage
from langevin.training.faults import not_finite, writable
from langevin.training.optimizers import make_optimizer, set_rate, take_own_average
from langevin.training.randomness import SampleOrder, seed_for


class Objective(Protocol):
    """What is trained, on what, towards what.

    The loss is a mean over the batch's samples, so that it can be taken in parts. One that compares samples with each
    other says so with an attribute `whole_batch = True`, and over several processes it has to gather what it compares
    (`distributed.gather_rows`).

    An objective that has `prepare(samples, step) -> P` and `loss_of(prepared: P, samples, step)` lets `loop.workers`
    prepare batches ahead. `prepare` runs in threads: it is a function of its arguments, on the CPU, without the weights
    and without the global random stream; `loss` is then `loss_of(prepare(samples, step), samples, step)`.
    """

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

    def preview(self, module: nn.Module, path: Path) -> dict[str, float] | None:
        """Draw what the averaged weights can do into a PNG. Returns what was measured of it, if anything was."""


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
    measured: dict[str, float] | None = None
    """What the preview measured, every `sample_every` steps, where the objective measures something."""


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
    """Train to `config.steps`; state, metrics, previews and what those measure go to `folder`. Without an `order` it is
    `SampleOrder`'s.

    A step is a function of the weights, the seed and its number, so that a resumed run goes on as if it had not
    stopped. Closing the generator saves a checkpoint first. Raises RequestError where the folder holds a run and
    `resume` is not set, or the objective cannot be trained as `config` says; CheckpointError where the newest
    checkpoint does not fit or cannot be read, or the next cannot be written; and NotFiniteError when the loss or its
    gradient is not finite, with the last checkpoint kept. The global random stream, which dropout draws from, is
    seeded anew for every step.

    Of several processes (`distributed.processes`) each calls this with the same arguments and a folder that all see;
    they have to close their generators after the same step. The weights are those of one process but for rounding.
    """
    checkpoints = folder / "checkpoints"
    if checkpointing.steps_saved(checkpoints) and not resume:
        raise RequestError(f"{folder} already holds a run: add --resume to go on with it, or give another --out")
    check_fits(objective, config)
    chief = distributed.rank() == 0
    if chief:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        checkpointing.clear_unfinished(checkpoints)
    distributed.wait()
    state, runner, shown = _build(objective, config, device)
    module, optimizer, scaler = state.module, state.optimizer, state.scaler
    facts = {"loop": config.model_dump(mode="json", exclude=set(FREE)), "seed": seed, **objective.facts}
    start = checkpointing.load(checkpoints, state, facts) if resume and checkpointing.steps_saved(checkpoints) else 0
    if chief:
        with writable(folder):
            for name in ("metrics.jsonl", "measured.jsonl"):
                metrics.cut(folder / name, start)
    order = SampleOrder(seed, objective.count) if order is None else order
    parameters = [p for p in module.parameters() if p.requires_grad]
    saved, done, skipped = start, start, 0
    module.train()

    def parts(step: int) -> list[Samples]:
        mine = distributed.share(order.batch(step, config.batch_size))
        each = len(mine) // config.accumulate
        return [mine[i : i + each] for i in range(0, len(mine), each)]

    def refresh() -> None:
        if config.optimizer.schedule_free:
            take_own_average(optimizer, module, state.averages["ema"])

    def save() -> None:
        nonlocal saved
        refresh()
        checkpointing.save(checkpoints, done, state, facts, config.keep)
        saved = done

    coming = batches(getattr(objective, "prepare", None), parts, range(start, config.steps), config.workers)
    try:
        began, seen = time.perf_counter(), 0
        for step, batch in coming:
            set_rate(optimizer, learning_rate(config, step))
            torch.manual_seed(seed_for(seed, "step", step, *([distributed.rank()] if not chief else [])))
            optimizer.zero_grad(set_to_none=True)
            loss, extra = _gradient(objective, runner, batch, step, saved, config, device, scaler, folder)
            scaler.unscale_(optimizer)
            norm = distributed.whole({"norm": torch.nn.utils.clip_grad_norm_(parameters, config.clip)})["norm"]
            finite = bool(torch.isfinite(norm))
            if not finite and not (scaler.is_enabled() and scaler.get_scale() > 1):
                raise not_finite("gradient's norm", norm, step, batch, saved, objective, folder)
            if finite:
                scaler.step(optimizer)
                for average in state.averages.values() if not config.optimizer.schedule_free else ():
                    average.update(module, step)
            else:  # float16: the scaled gradient overflowed, and the scale is halved
                skipped += 1
            scaler.update()
            done = step + 1
            seen += config.batch_size
            figures = None
            if done % config.log_every == 0 or done == config.steps:
                elapsed = time.perf_counter() - began
                figures = {
                    **distributed.mean({"loss": float(loss), **{k: float(v) for k, v in extra.items()}}),
                    **({"gradient_norm": float(norm)} if finite else {}),
                    "learning_rate": learning_rate(config, step),
                    "samples_per_second": seen / elapsed,
                }
                if scaler.is_enabled():
                    figures |= {"skipped_steps": float(skipped), "loss_scale": scaler.get_scale()}
                began, seen, skipped = time.perf_counter(), 0, 0
                if chief:
                    with writable(folder):
                        metrics.record(folder / "metrics.jsonl", {"step": done, **figures})
            if done % config.save_every == 0 or done == config.steps:
                save()
            measured = None
            if done % config.sample_every == 0 or done == config.steps:
                refresh()
                measured = _preview(objective, state, shown, folder / f"preview-{done:08d}.png")
                if measured is not None:
                    with writable(folder):
                        metrics.record(folder / "measured.jsonl", {"step": done, **measured})
            yield TrainingStep(done, figures, measured)
        distributed.wait()  # the others may read what the first has written
    except GeneratorExit:
        # Closed at the yield, between two steps. A step cut off in its middle would not be a state of the
        # uninterrupted run, so an exception from within leaves the last checkpoint as it is.
        if done > saved:
            save()
        raise
    finally:
        coming.close()


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a half cosine down to `final_rate` (Loshchilov & Hutter 2017, equation 5), or constant."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    through = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (
        config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * min(1.0, through))) / 2
    )


def check_fits(objective: Objective, config: LoopConfig) -> None:
    """RequestError where the objective or the number of processes does not allow what `config` says."""
    world = distributed.world()
    if config.batch_size % (world * config.accumulate):
        raise RequestError(
            f"loop.batch_size {config.batch_size} is not a multiple of {world} processes x loop.accumulate "
            f"{config.accumulate}"
        )
    if config.accumulate > 1 and getattr(objective, "whole_batch", False):
        raise RequestError(
            f"loop.accumulate {config.accumulate}: this stage compares the samples of a batch with each other, so a "
            "batch is not taken in parts: set it to 1"
        )
    if config.workers and not hasattr(objective, "prepare"):
        raise RequestError(f"loop.workers {config.workers}: this stage has nothing to prepare ahead: set it to 0")
    if world > 1 and config.parallel == "fsdp":
        for name, parameter in objective.module.named_parameters():
            if not parameter.ndim:
                raise RequestError(f"loop.parallel fsdp: {name} is a single number, which FSDP2 cannot cut: choose ddp")
        if config.precision == "float16":
            raise RequestError("loop.precision float16: its loss scaling does not go with fsdp: choose bfloat16")
        if config.optimizer is Optimizer.ADAFACTOR:
            raise RequestError("loop.optimizer adafactor: its rows and columns are not sharded by fsdp: choose adamw")
        if config.optimizer is Optimizer.MUON:
            raise RequestError("loop.optimizer muon: it needs whole matrices, which fsdp cuts: choose ddp, or adamw")


def _build(objective: Objective, config: LoopConfig, device: str) -> tuple[State, nn.Module, nn.Module | None]:
    """The state, what runs the loss, and where weights are sharded a whole module for the previews."""
    module = objective.module
    if config.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averages = {name: ExponentialMovingAverage(module, average) for name, average in config.moving_averages.items()}
    sharded = config.parallel == "fsdp" and distributed.world() > 1
    shown = copy.deepcopy(next(iter(averages.values())).module) if sharded else None
    if config.recompute:
        recompute(module)
    if config.compile:
        compile_blocks(module)
    runner = distributed.spread(module, config.parallel, device)
    if sharded:
        for average in averages.values():
            distributed.shard(average.module, device)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=config.precision == "float16")
    return State(module, averages, make_optimizer(module, config), scaler), runner, shown


def _gradient(
    objective: Objective,
    runner: nn.Module,
    batch: list[Part],
    step: int,
    saved: int,
    config: LoopConfig,
    device: str,
    scaler: torch.amp.GradScaler,
    folder: Path,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Leaves the mean of the parts' gradients in the parameters; returns the means of the loss and of its extras."""
    total: Tensor | None = None
    extras: dict[str, Tensor] = {}
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.precision)
    share = 1 / len(batch)
    for i, part in enumerate(batch):
        last = i == len(batch) - 1
        with nullcontext() if last else distributed.without_exchange(runner):
            with torch.autocast(torch.device(device).type, kind, enabled=kind is not None):
                loss, extra = runner(lambda part=part: _loss(objective, part, step))
            if distributed.anywhere(not torch.isfinite(loss)):
                raise not_finite("loss", loss.detach(), step, [part], saved, objective, folder)
            scaler.scale(loss * share if len(batch) > 1 else loss).backward()
        total = loss.detach() * share if total is None else total + loss.detach() * share
        for name, value in extra.items():
            extras[name] = value * share if name not in extras else extras[name] + value * share
    assert total is not None
    return total, extras


def _loss(objective: Any, part: Part, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    result: tuple[Tensor, dict[str, Tensor]] = (
        objective.loss_of(part.prepared, part.samples, step)
        if hasattr(objective, "prepare")
        else objective.loss(part.samples, step)
    )
    return result


def _preview(objective: Objective, state: State, shown: nn.Module | None, path: Path) -> dict[str, float] | None:
    """Of several processes the first draws and measures."""
    module = next(iter(state.averages.values())).module
    if shown is not None:
        shown.load_state_dict(distributed.whole(module.state_dict()))
        module = shown
    if distributed.rank() == 0:
        with writable(path):
            return objective.preview(module, path)
    return None
