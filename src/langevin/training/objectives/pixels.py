"""Diffusion on pixels, unconditional or by class (Ho et al. 2020; Nichol & Dhariwal 2021)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.errors import DataError
from langevin.images.grids import save_grid
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.training.data import PictureSet
from langevin.training.objectives.denoising import Denoising, DenoisingConfig, network_of, with_levels
from langevin.training.objectives.previews import sampled
from langevin.training.randomness import sample_generators

_PREVIEWS = 64


class PixelObjective:
    """The loss of `Denoising` on pictures. Labels are left out now and then, for classifier-free guidance."""

    def __init__(
        self,
        model: DiffusionModel,
        data: PictureSet,
        *,
        seed: int,
        channels: int,
        classes: tuple[str, ...],
        label_dropout: float,
        denoising: DenoisingConfig,
        variational: float,
        preview_guidance: float,
        device: str,
    ) -> None:
        """channels: 3, or 1 for grey pictures; others are refused then: DataError. classes: empty where the network
        takes none; else it has an embedding for each and, where labels are left out, one more."""
        if channels == 1:
            check_grey(data)
        self.model = model
        self.denoising = Denoising(model, denoising, variational=variational)
        self.module: nn.Module = with_levels(model.network, self.denoising.levels).to(device)
        self.data = data
        self.labels = torch.tensor([r["label"] for r in data.records]) if classes else None
        self.classes = classes
        self.seed = seed
        self.channels = channels
        self.label_dropout = label_dropout
        self.preview_guidance = preview_guidance
        self.device = device

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "data": self.data.fingerprint,
            "classes": list(self.classes),
            "label_dropout": self.label_dropout,
            "variational": self.denoising.variational,
            **self.denoising.config.facts,
        }

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        streams = sample_generators(self.seed, "diffusion", step, samples)
        indices = torch.tensor([i for _, i in samples])
        x0 = self.data.images(indices)[:, : self.channels].to(self.device)
        noised = self.denoising.noised(x0, streams, step)
        labels = None
        if self.labels is not None:
            dropped = torch.stack([torch.rand((), generator=g) for g in streams]) < self.label_dropout
            labels = torch.where(dropped, len(self.classes), self.labels[indices]).to(self.device)
        raw = self.model.raw(noised.seen, noised.levels.sigma, Conditioning(labels=labels))
        return self.denoising.loss(noised, raw)

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """64 pictures, 20 steps of DPM-Solver++(2M); the classes in turn, one a column where there are at most ten."""
        model = replace(self.model, network=network_of(module))
        cond = uncond = Conditioning()
        columns = 8
        if self.classes:
            columns = min(len(self.classes), 10)
            count = _PREVIEWS // columns * columns
            labels = torch.arange(count, device=self.device) % len(self.classes)
            cond = Conditioning(labels=labels)
            uncond = Conditioning(labels=torch.full_like(labels, len(self.classes)))
        else:
            count = _PREVIEWS
        shape = (self.channels, *self.data.pictures.shape[2:])
        x = sampled(model, shape, count, cond, uncond, self.preview_guidance, pixels=True)
        save_grid(path, x.expand(-1, 3, -1, -1), columns=columns)


def check_grey(data: PictureSet) -> None:
    """DataError where a picture has a colour."""
    for start in range(0, len(data), 4096):
        pictures = data.pictures[start : start + 4096]
        coloured = (pictures[:, 1:] != pictures[:, :1]).flatten(1).any(1)
        if bool(coloured.any()):
            raise DataError(
                f"picture {start + int(coloured.nonzero()[0])} of the data has colours, and the network has 1 channel: "
                "set diffusion.network.in_channels and out_channels to 3, or make the pictures grey"
            )


def class_names(data: PictureSet, count: int) -> tuple[str, ...]:
    """Names of the classes 0 ... count - 1: the caption that all pictures of a label share, else the label's digits.

    Raises DataError where a record has no label, or one that is not below `count`.
    """
    captions: dict[int, set[str]] = {}
    for i, record in enumerate(data.records):
        label = record.get("label")
        if type(label) is not int or not 0 <= label < count:
            raise DataError(
                f"picture {i} of the data has the label {label!r}; the network has the classes 0 to {count - 1}: "
                "diffusion.network.num_classes must be the number of labels, and 1 more with diffusion.label_dropout"
            )
        captions.setdefault(label, set()).add(str(record["caption"]))
    names = [next(iter(c)) if len(c := captions.get(i, set())) == 1 else str(i) for i in range(count)]
    return tuple(names) if len(set(names)) == count else tuple(map(str, range(count)))
