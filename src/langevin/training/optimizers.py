"""The optimisers by their names, and what the schedule-free ones need besides."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, assert_never

import torch
from torch import nn

from langevin.errors import RequestError
from langevin.training.config import LoopConfig, Optimizer
from langevin.training.distributed import local
from langevin.training.ema import ExponentialMovingAverage

RATE = "rate"
"""A group's key for the share of the learning rate that it takes, where that is not all of it."""
_PLAIN_RATE = 0.25
"""Muon's: biases, norms and embeddings move by Adam's rule, which takes lower rates than orthogonal steps do."""


def make_optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """The optimiser of the module's trained parameters. RequestError where its library is missing."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    match config.optimizer:
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
        case Optimizer.ADAFACTOR:
            return torch.optim.Adafactor(groups, lr=rate)
        case Optimizer.SCHEDULE_FREE_ADAMW | Optimizer.SCHEDULE_FREE_RADAM:
            _require("schedulefree", "schedulefree", config.optimizer)
            import schedulefree

            kinds = {
                Optimizer.SCHEDULE_FREE_ADAMW: schedulefree.AdamWScheduleFree,
                Optimizer.SCHEDULE_FREE_RADAM: schedulefree.RAdamScheduleFree,
            }
            free: torch.optim.Optimizer = kinds[config.optimizer](groups, lr=rate, betas=betas)
            free.train()  # type: ignore[attr-defined]
            return free
        case Optimizer.MUON:
            _require("pytorch_optimizer", "pytorch-optimizer", config.optimizer)
            import pytorch_optimizer

            orthogonal = {"use_muon": True, "use_adjusted_lr": True}
            adam = {"use_muon": False, "betas": betas, RATE: _PLAIN_RATE}
            muon: torch.optim.Optimizer = pytorch_optimizer.Muon(
                [{**groups[0], "lr": rate, **orthogonal}, {**groups[1], "lr": rate, **adam}]
            )
            return muon
        case _:
            assert_never(config.optimizer)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE, 1.0)


def _require(module: str, package: str, optimizer: Optimizer) -> None:
    if find_spec(module) is None:
        raise RequestError(f"loop.optimizer {optimizer} needs the library {package}: pip install {package}")


@torch.no_grad()
def take_own_average(optimizer: Any, module: nn.Module, average: ExponentialMovingAverage) -> None:
    """Make `average` the weights that a schedule-free optimiser has averaged.

    The library turns the module's weights into them and back in place, with rounding; so they are put back bit for
    bit, and how often this is called changes nothing.
    """
    parameters = [local(p) for p in module.parameters()]
    before = [p.clone() for p in parameters]
    optimizer.eval()
    average.assign(module)
    optimizer.train()
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
