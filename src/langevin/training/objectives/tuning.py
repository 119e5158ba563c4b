"""The diffusion loss with something else than the U-Net's weights to train, and prior preservation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.training.finetuning.parts import Tuned
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.randomness import generator


class TuningObjective:
    """`DiffusionObjective`'s loss for what `tuned` trains. With a `prior`, the loss of one of its samples for each of
    the data's is added, `prior_weight` times (Ruiz et al. 2023, equation 2)."""

    def __init__(
        self,
        tuned: Tuned,
        diffusion: DiffusionObjective,
        *,
        seed: int,
        facts: dict[str, Any],
        prior: DiffusionObjective | None = None,
        prior_weight: float = 0.0,
    ) -> None:
        self.module: nn.Module = tuned.module
        self.tuned = tuned
        self.diffusion = diffusion
        self.seed = seed
        self.prior = prior
        self.prior_weight = prior_weight
        self.facts: dict[str, Any] = {**diffusion.facts, **facts}
        if prior is not None:
            self.facts |= {"prior": prior.facts, "prior_weight": prior_weight}

    @property
    def count(self) -> int:
        return self.diffusion.count

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, extra = self.diffusion.loss(samples, step)
        if self.prior is None:
            return loss, extra
        kept, _ = self.prior.loss([self.counterpart(s) for s in samples], step)
        return loss + self.prior_weight * kept, {**extra, "own": loss.detach(), "prior": kept.detach()}

    def counterpart(self, sample: tuple[int, int]) -> tuple[int, int]:
        """The prior's sample that goes with one of the data's: drawn anew in each epoch, wherever the batch is cut."""
        assert self.prior is not None
        epoch, index = sample
        drawn = torch.randint(self.prior.count, (), generator=generator(self.seed, "counterpart", epoch, index))
        # Its noise is drawn by (epoch, index): the same picture twice in a batch is to have two noises.
        return epoch * self.count + index, int(drawn)

    def preview(self, module: nn.Module, path: Path) -> None:
        with self.tuned.using(module) as unet:
            self.diffusion.preview(unet, path)
