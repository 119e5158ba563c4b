"""Text-conditioned latent diffusion (Ho et al. 2020; Rombach et al. 2022), stated in x0-space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.images.grids import save_grid
from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.text import PromptEncoder
from langevin.model.text_transformers import TransformersEncoder
from langevin.training.caching import TextStates
from langevin.training.captions import CaptionConfig, caption
from langevin.training.data import PictureSet
from langevin.training.objectives.denoising import Denoising, DenoisingConfig, network_of, with_levels
from langevin.training.objectives.latents import Latents
from langevin.training.objectives.previews import sampled
from langevin.training.randomness import generator, normal, sample_generators


class DiffusionObjective:
    """The loss of `Denoising` on latents.

    The autoencoder and the text encoder are frozen: latents are encoded once, text states on the way.
    """

    def __init__(
        self,
        model: DiffusionModel,
        autoencoder: Autoencoder,
        text: PromptEncoder,
        data: PictureSet,
        latents: Latents,
        captions: CaptionConfig,
        *,
        seed: int,
        caption_dropout: float,
        denoising: DenoisingConfig,
        preview_prompts: tuple[str, ...],
        preview_guidance: float,
        device: str,
        trains_text: bool = False,
    ) -> None:
        """trains_text: gradients go through the text encoder too, for whoever trains a part of it."""
        self.model = model
        self.denoising = Denoising(model, denoising)
        self.module: nn.Module = with_levels(model.network, self.denoising.levels).to(device)
        self.autoencoder = autoencoder
        self.text = text
        self.states = TextStates(text, device)
        self.data = data
        self.latents = latents
        self.captions = captions
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.preview_prompts = preview_prompts
        self.preview_guidance = preview_guidance
        self.device = device
        self.trains_text = trains_text

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        # The encoder's files are no part of the run folder: another encoder under the same name is refused.
        named = {"text_encoder": dict(self.text.record.files)} if isinstance(self.text, TransformersEncoder) else {}
        return {
            **named,
            "data": self.data.fingerprint,
            "captions": self.captions.model_dump(mode="json"),
            "caption_dropout": self.caption_dropout,
            **self.denoising.config.facts,
        }

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        streams = sample_generators(self.seed, "diffusion", step, samples)
        mean, deviation = self.latents.of(samples, self.seed)
        x0 = self.autoencoder.scale_factor * (mean + deviation * normal(streams, mean.shape[1:]))
        x0 = x0.to(self.device)
        noised = self.denoising.noised(x0, streams, step)
        dropped = torch.stack([torch.rand((), generator=g) for g in streams]) < self.caption_dropout
        texts = [
            "" if drop else caption(self.data.records[i], self.captions, generator(self.seed, "caption", epoch, i))
            for (epoch, i), drop in zip(samples, dropped.tolist(), strict=True)
        ]
        raw = self.model.raw(noised.seen, noised.levels.sigma, Conditioning(context=self.context(texts)))
        return self.denoising.loss(noised, raw)

    def context(self, texts: list[str]) -> Tensor:
        """Text states, B L D. A caption that comes again is not encoded again while there is room, unless the encoder
        trains."""
        if not self.trains_text:
            return self.states.of(texts)
        distinct = list(dict.fromkeys(texts))
        return self.text.states(distinct)[torch.tensor([distinct.index(t) for t in texts])]

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """The preview prompts with seeds 0, 1, ..., 20 steps of DPM-Solver++(2M)."""
        count = len(self.preview_prompts)
        cond = Conditioning(context=self.context(list(self.preview_prompts)))
        uncond = Conditioning(context=self.context([""] * count))
        model = replace(self.model, network=network_of(module))
        x = sampled(model, self.latents.shape, count, cond, uncond, self.preview_guidance)
        save_grid(path, self.autoencoder.decode(x), columns=8)
