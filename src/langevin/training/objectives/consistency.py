"""Consistency distillation of a diffusion model into one that needs few steps (Song et al. 2023; Luo et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.diffusion.consistency import (
    PerImage,
    boundary,
    euler_step,
    heun_step,
    lower_levels,
    pseudo_huber,
    squared,
)
from langevin.diffusion.guidance import combine
from langevin.images.grids import save_grid
from langevin.model.conditioning import Conditioning, concatenate
from langevin.model.diffusion_model import DiffusionModel, per_image
from langevin.training.finetuning.config import DistillStage
from langevin.training.finetuning.parts import Tuned
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.previews import sampled

Lent = Callable[[], AbstractContextManager[nn.Module]]
"""Gives a network for as long as it is needed."""


class Consistency:
    """The mean over the batch of d(f(x, sigma), f^-(x', sigma')): x' is where the frozen teacher, guided, goes from x
    in `skip` timesteps, and f^- the student itself without gradient (Luo et al. 2023, algorithm 1, with the target of
    Song & Dhariwal 2023, section 3.2).

    What the teacher's guidance does becomes part of the student, which is sampled without any. Where f is the teacher's
    consistency function, the loss is 0 but for the error of the teacher's solver.
    """

    def __init__(self, model: DiffusionModel, teacher: Lent, stage: DistillStage) -> None:
        """model: the student, of any prediction type. teacher: a network for the same conventions."""
        self.model = model
        self.teacher = teacher
        self.stage = stage

    def estimate(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """f(x, sigma), B C H W. x: B C H W in variance-exploding coordinates; sigma: float64 [B]."""
        c_skip, c_out = boundary(self.model.schedule, sigma)
        return per_image(c_skip, x) * x + per_image(c_out, x) * x0_of(self.model, x, sigma, cond)

    @torch.no_grad()
    def earlier(self, x: Tensor, sigma: Tensor, cond: Conditioning, uncond: Conditioning) -> tuple[Tensor, Tensor]:
        """(x', sigma'): the point of the guided teacher's trajectory through x that lies `skip` timesteps below."""
        step = {"euler": euler_step, "heun": heun_step}[self.stage.solver]
        levels = lower_levels(self.model.schedule, sigma, self.stage.skip, self.stage.solver_steps)
        with self.teacher() as network:
            denoiser = guided_x0(replace(self.model, network=network), cond, uncond, self.stage.guidance)
            for level, lower in pairwise(levels):
                x = step(denoiser, x, level, lower)
        return x, levels[-1]

    def loss(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, uncond: Conditioning
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts: 0-dimensional tensors."""
        # First the pass that learns: autocast keeps the weights that it has cast, and those cast without gradient
        # would serve here too.
        estimate = self.estimate(x, sigma, cond)
        there, lower = self.earlier(x, sigma, cond, uncond)
        with torch.no_grad():
            target = self.estimate(there, lower, cond)
        stage = self.stage
        if stage.loss == "huber":
            distance = pseudo_huber(estimate, target, stage.huber_c)
        else:
            distance = squared(estimate, target)
        if stage.weighting is not None:
            weight = stage.weighting.of(sigma, gamma=stage.gamma, sigma_data=self.model.sigma_data)
            return (weight.to(distance) * distance).mean(), {"unweighted": distance.detach().mean()}
        return distance.mean(), {}


class ConsistencyObjective:
    """`Consistency` on the pictures and captions of a `DiffusionObjective`.

    Previews show the student's pictures in few steps above those of the teacher in twenty, from the same noise, and
    measure what the student's single step from the largest level is away from where the teacher goes from there.
    """

    def __init__(self, tuned: Tuned, diffusion: DiffusionObjective, teacher: Lent, stage: DistillStage,
                 *, facts: dict[str, Any]) -> None:  # fmt: skip
        self.module: nn.Module = tuned.module
        self.tuned = tuned
        self.diffusion = diffusion
        self.stage = stage
        self.consistency = Consistency(diffusion.model, teacher, stage)
        self.facts: dict[str, Any] = {**diffusion.facts, **facts}

    @property
    def count(self) -> int:
        return self.diffusion.count

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        noised, cond = self.diffusion.drawn(samples, step)
        uncond = replace(cond, context=self.diffusion.context([""] * len(samples)))
        return self.consistency.loss(noised.x, noised.levels.sigma, cond, uncond)

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> dict[str, float]:
        cond, uncond, _ = self.diffusion.previewed()
        given = cond.context
        assert given is not None
        with self.tuned.using(module) as unet:
            student = replace(self.diffusion.model, network=unet)
            drawn = [
                sampled(student, self.diffusion.latents.shape, len(given), cond, uncond, 1.0, sampler="lcm", steps=n)
                for n in (self.stage.steps, 1)
            ]
        whole = self._teachers
        # One step of `lcm` is the student's estimate at the largest level, without any noise after it.
        figures = {"one_step_error": _rms(drawn[1], whole), "one_step_error_of_teacher": self._teachers_error}
        rows = torch.cat([drawn[0], whole])
        save_grid(path, self.diffusion.autoencoder.decode(rows), columns=len(given))
        return figures

    @cached_property
    def _teachers(self) -> Tensor:
        return self._of_teacher("dpmpp_2m", 20)

    @cached_property
    def _teachers_error(self) -> float:
        return _rms(self._of_teacher("euler", 1), self._teachers)

    def _of_teacher(self, sampler: str, steps: int) -> Tensor:
        cond, uncond, _ = self.diffusion.previewed()
        assert cond.context is not None
        with self.consistency.teacher() as network:
            model = replace(self.diffusion.model, network=network)
            shape, count = self.diffusion.latents.shape, len(cond.context)
            return sampled(model, shape, count, cond, uncond, self.stage.guidance, sampler=sampler, steps=steps)


def x0_of(model: DiffusionModel, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """D(x, sigma), B C H W, each image at its own level. sigma: float64 [B]."""
    raw = model.raw(x, sigma, cond)
    if model.learned_variance:
        raw = raw.chunk(2, 1)[0]
    c_skip, c_out, _ = model.prediction.coefficients(sigma, model.sigma_data)
    return per_image(c_skip, x) * x + per_image(c_out, x) * raw


def guided_x0(model: DiffusionModel, cond: Conditioning, uncond: Conditioning, scale: float) -> PerImage:
    """Classifier-free guidance, each image at its own level, with one call of the network on 2 B images."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        if scale == 1:
            return x0_of(model, x, sigma, cond)
        both = x0_of(model, x.repeat(2, 1, 1, 1), sigma.repeat(2), concatenate([uncond, cond]))
        return combine(both[len(x) :], both[: len(x)], scale)

    return denoiser


def _rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())
