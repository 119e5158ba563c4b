"""The diffusion loss of a ControlNet beside a locked U-Net, and whether pictures keep to their hints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.evaluation.edges import edge_agreement, edges_of
from langevin.images.grids import save_grid
from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning, Control
from langevin.tasks.hints import in_cells
from langevin.training.data import PictureSet
from langevin.training.finetuning.parts import TunedControl
from langevin.training.objectives.beside import Beside
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.previews import sampled
from langevin.training.randomness import generator

_DRAWS = 4
"""Noises for each picture in the held-out losses."""


class Hinted(Beside):
    """What the ControlNet that trains makes of each picture's hint."""

    def __init__(self, data: PictureSet, seed: int, hints: PictureSet, tuned: TunedControl, factor: int) -> None:
        """hints: one for each of `data`'s pictures, in their order. factor: pixels along a side of a latent's cell."""
        super().__init__(data, seed, {"kind": "control", "hints": hints.fingerprint})
        self.hints = hints
        self.tuned = tuned
        self.factor = factor

    def given(self, indices: list[int], flipped: Tensor, streams: Sequence[torch.Generator]) -> Conditioning:
        """`controls`, on the ControlNet's device; nothing in them is random."""
        network = self.tuned.control
        pixels = (self.hints.images(indices, flipped) + 1) / 2  # ControlNets take them from 0 to 1
        pixels = in_cells(pixels, self.factor).to(next(network.parameters()).device)
        return Conditioning(controls=(Control(network, network.embed_hint(pixels)),))

    def shown(self, indices: list[int], cond: Conditioning) -> list[Tensor]:
        return [self.hints.images(indices), self.data.images(indices)]


class ControlObjective:
    """`DiffusionObjective`'s loss for a ControlNet. Previews measure it on pictures that are not trained on: the loss
    with and without it, on the same noise and without a prompt, by which the model could know the picture; and how well
    the edges of what is made agree with the picture's own."""

    def __init__(
        self,
        tuned: TunedControl,
        diffusion: DiffusionObjective,
        held: Hinted,
        autoencoder: Autoencoder,
        *,
        prompts: tuple[str, ...],
        guidance: float,
        tolerance: int,
        facts: dict[str, Any],
    ) -> None:
        """held: of the pictures that are measured. prompts: what is made of their hints, in turn; none: of each its
        caption. tolerance: of the edges, in pixels."""
        self.module: nn.Module = tuned.module
        self.tuned = tuned
        self.diffusion = diffusion
        self.held = held
        self.autoencoder = autoencoder
        self.guidance = guidance
        self.tolerance = tolerance
        self.data = diffusion.data
        captions = [str(record["caption"]) for record in held.data.records]
        self.prompts = [prompts[i % len(prompts)] if prompts else text for i, text in enumerate(captions)]
        self.facts: dict[str, Any] = {**diffusion.facts, "held_out": list(held.data.keys), **facts}

    @property
    def count(self) -> int:
        return self.diffusion.count

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.diffusion.loss(samples, step)

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> dict[str, float]:
        """Rows of hints, the pictures that they belong to, what is made without and what with control from the same
        noise."""
        everything = list(range(len(self.held.data)))
        with self.tuned.using(module):
            given = self.held.given(everything, torch.zeros(len(everything), dtype=torch.bool), [])
            drawn = self._drawn(given)
            losses = {"held_out_loss": self._loss(given), "held_out_loss_without": self._loss_without}
        save_grid(path, torch.cat([*self.held.shown(everything, given), self._without, drawn]), len(everything))
        wanted = edges_of(self.held.data.images(everything))
        figures = {
            name: edge_agreement(edges_of(pictures), wanted, self.tolerance)
            for name, pictures in (("", drawn), ("_without", self._without), ("_reconstructed", self._reconstructed))
        }
        return {
            **losses,
            "edge_precision": float(figures[""].precision.mean()),
            "edge_recall": float(figures[""].recall.mean()),
            **{f"edge_f1{name}": float(found.f1.mean()) for name, found in figures.items()},
        }

    def _drawn(self, given: Conditioning) -> Tensor:
        """Pictures B 3 H W on the CPU."""
        cond = replace(given, context=self.diffusion.context(self.prompts))
        uncond = replace(given, context=self.diffusion.context([""] * len(self.prompts)))
        shape = tuple(self._latents.shape[1:])
        x = sampled(self.diffusion.model, shape, len(self.prompts), cond, uncond, self.guidance)
        return self.autoencoder.decode(x).clamp(-1, 1).cpu()

    def _loss(self, given: Conditioning) -> float:
        """Over `_DRAWS` noises and levels for each picture, always the same, drawn as in training."""
        given = replace(given, context=self.diffusion.context([""] * len(self.prompts)))
        total = 0.0
        for draw in range(_DRAWS):
            streams = [generator(0, "held out", draw, i) for i in range(len(self.prompts))]
            noised = self.diffusion.denoising.noised(self._latents, streams, 0)
            raw = self.diffusion.model.raw(noised.seen, noised.levels.sigma, given)
            total += float(self.diffusion.denoising.loss(noised, raw)[0]) / _DRAWS
        return total

    @cached_property
    def _latents(self) -> Tensor:
        """Of the held-out pictures, means of the posterior."""
        return self.autoencoder.encode(self.held.data.images(range(len(self.held.data))).to(self.diffusion.device))

    @cached_property
    def _loss_without(self) -> float:
        return self._loss(Conditioning())

    @cached_property
    def _without(self) -> Tensor:
        return self._drawn(Conditioning())

    @cached_property
    def _reconstructed(self) -> Tensor:
        """What the autoencoder leaves of the pictures: no latent shows their edges better."""
        return self.autoencoder.decode(self._latents).clamp(-1, 1).cpu()
