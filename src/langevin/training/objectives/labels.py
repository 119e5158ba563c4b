"""Latent diffusion conditioned on class labels instead of text."""

from __future__ import annotations

from typing import Any

import torch

from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.training.captions import CaptionConfig
from langevin.training.data import PictureSet
from langevin.training.objectives.denoising import DenoisingConfig
from langevin.training.objectives.diffusion import DiffusionObjective
from langevin.training.objectives.latents import Latents

_PREVIEWS = 16


class LabelDiffusion(DiffusionObjective):
    """As `DiffusionObjective`, with `labels` for the network. The row after the last class stands for none of them."""

    def __init__(
        self,
        model: DiffusionModel,
        autoencoder: Autoencoder,
        data: PictureSet,
        latents: Latents,
        *,
        seed: int,
        classes: tuple[str, ...],
        label_dropout: float,
        denoising: DenoisingConfig,
        preview_guidance: float,
        device: str,
    ) -> None:
        """classes: their names; every record has a `label` below their number."""
        super().__init__(
            model,
            autoencoder,
            None,
            data,
            latents,
            CaptionConfig(),
            seed=seed,
            caption_dropout=label_dropout,
            denoising=denoising,
            preview_prompts=(),
            preview_guidance=preview_guidance,
            device=device,
        )
        self.classes = classes
        self.labels = torch.tensor([record["label"] for record in data.records])

    @property
    def facts(self) -> dict[str, Any]:
        rest = {k: v for k, v in super().facts.items() if k not in ("captions", "caption_dropout")}
        return {**rest, "classes": list(self.classes), "label_dropout": self.caption_dropout}

    def conditioning(
        self, samples: list[tuple[int, int]], dropped: list[bool], streams: list[torch.Generator]
    ) -> Conditioning:
        labels = self.labels[torch.tensor([i for _, i in samples])]
        return Conditioning(labels=torch.where(torch.tensor(dropped), len(self.classes), labels).to(self.device))

    def previewed(self) -> tuple[Conditioning, Conditioning, list[torch.Tensor]]:
        """Sixteen pictures, the classes in turn."""
        labels = torch.arange(_PREVIEWS, device=self.device) % len(self.classes)
        # Where no label was ever left out there is no row for that, and no guidance.
        none = torch.full_like(labels, len(self.classes)) if self.caption_dropout else labels
        return Conditioning(labels=labels), Conditioning(labels=none), []
