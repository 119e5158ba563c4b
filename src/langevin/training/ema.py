"""Exponential moving averages of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from langevin.training.config import Average
from langevin.training.distributed import local


class ExponentialMovingAverage:
    """A copy of a module whose weights follow the module's, in float32."""

    def __init__(self, module: nn.Module, average: Average) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.average = average

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module` after optimiser step `step`, counted from 0."""
        mine: list[Tensor] = [local(p) for p in self.module.parameters()]
        theirs: list[Tensor] = [local(p.detach()) for p in module.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - self.average.at(step))
        self._copy_buffers(module)

    @torch.no_grad()
    def assign(self, module: nn.Module) -> None:
        """Become equal to `module`."""
        for mine, theirs in zip(self.module.parameters(), module.parameters(), strict=True):
            local(mine).copy_(local(theirs))
        self._copy_buffers(module)

    def _copy_buffers(self, module: nn.Module) -> None:
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
