"""Latent diffusion conditioned on class labels instead of text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from langevin.errors import DataError
from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.training.captions import CaptionConfig
from langevin.training.data import PictureSet
from langevin.training.objectives.diffusion import DiffusionObjective, Weighting

_PREVIEWS = 16


class LabelDiffusion(DiffusionObjective):
    """As `DiffusionObjective`, with `labels` for the network. The row after the last class stands for none of them."""

    def __init__(
        self,
        model: DiffusionModel,
        autoencoder: Autoencoder,
        data: PictureSet,
        latents: tuple[Tensor, Tensor],
        *,
        seed: int,
        classes: int,
        label_dropout: float,
        weighting: Weighting,
        preview_guidance: float,
        device: str,
    ) -> None:
        """Raises DataError where a record has no label below `classes`."""
        super().__init__(
            model,
            autoencoder,
            None,
            data,
            latents,
            CaptionConfig(),
            seed=seed,
            caption_dropout=label_dropout,
            weighting=weighting,
            preview_prompts=(),
            preview_guidance=preview_guidance,
            device=device,
        )
        self.classes = classes
        self.labels = labels_of(data, classes)

    @property
    def facts(self) -> dict[str, Any]:
        rest = {k: v for k, v in super().facts.items() if k not in ("captions", "caption_dropout")}
        return {**rest, "classes": self.classes, "label_dropout": self.caption_dropout}

    def conditioning(
        self, samples: list[tuple[int, int]], dropped: list[bool], streams: list[torch.Generator]
    ) -> Conditioning:
        labels = self.labels[torch.tensor([i for _, i in samples])]
        return Conditioning(labels=torch.where(torch.tensor(dropped), self.classes, labels).to(self.device))

    def previewed(self) -> tuple[Conditioning, Conditioning, list[Tensor]]:
        """Sixteen pictures, the classes in turn."""
        labels = torch.arange(_PREVIEWS, device=self.device) % self.classes
        # Where no label was ever left out there is no row for that, and no guidance.
        none = torch.full_like(labels, self.classes) if self.caption_dropout else labels
        return Conditioning(labels=labels), Conditioning(labels=none), []


def labels_of(data: PictureSet, classes: int) -> Tensor:
    """int64 [N]. Raises DataError where a record has no label, or one that is not below `classes`."""
    for i, record in enumerate(data.records):
        if type(record.get("label")) is not int or not 0 <= record["label"] < classes:
            raise DataError(
                f"picture {i} of the data has the label {record.get('label')!r}: labels must be 0 to {classes - 1}; "
                "set diffusion.classes, and use class folders, idx files or records with a whole number `label`"
            )
    return torch.tensor([record["label"] for record in data.records])
