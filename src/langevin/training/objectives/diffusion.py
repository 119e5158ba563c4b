"""Text-conditioned latent diffusion (Ho et al. 2020; Rombach et al. 2022), stated in x0-space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from langevin.images.grids import save_grid
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.text import PromptEncoder
from langevin.model.text_transformers import TransformersEncoder
from langevin.training.caching import TextStates
from langevin.training.captions import CaptionConfig, caption
from langevin.training.data import PictureSet
from langevin.training.objectives.beside import Beside
from langevin.training.objectives.denoising import Denoising, DenoisingConfig, Noised, network_of, with_levels
from langevin.training.objectives.previews import sampled
from langevin.training.randomness import generator, normal, sample_generators


class Codec(Protocol):
    """Between pictures and what is diffused: an `Autoencoder`, or for pixels nothing at all."""

    scale_factor: float

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures B 3 H W in about [-1, 1]."""


class Encoded(Protocol):
    """The data set as it is diffused: `Latents`, or for pixels the pictures."""

    @property
    def shape(self) -> tuple[int, ...]:
        """C h w."""

    def of(self, samples: Sequence[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) for a step's (epoch, index) pairs, B C h w, on the CPU."""


class DiffusionObjective:
    """The loss of `Denoising` on latents.

    The autoencoder and the text encoder are frozen: latents are encoded once, text states on the way. `beside` gives
    what is in the network's further input channels, if it has any.
    """

    def __init__(
        self,
        model: DiffusionModel,
        autoencoder: Codec,
        text: PromptEncoder | None,
        data: PictureSet,
        latents: Encoded,
        captions: CaptionConfig,
        *,
        seed: int,
        caption_dropout: float,
        denoising: DenoisingConfig,
        preview_prompts: tuple[str, ...],
        preview_guidance: float,
        device: str,
        beside: Beside | None = None,
        trains_text: bool = False,
    ) -> None:
        """trains_text: gradients go through the text encoder too, for whoever trains a part of it."""
        self.model = model
        self.denoising = Denoising(model, denoising)
        self.module: nn.Module = with_levels(model.network, self.denoising.levels).to(device)
        self.autoencoder = autoencoder
        self.text = text
        self.states = None if text is None else TextStates(text, device)
        self.data = data
        self.latents = latents
        self.captions = captions
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.preview_prompts = preview_prompts
        self.preview_guidance = preview_guidance
        self.device = device
        self.beside = beside
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
            **({} if self.beside is None else {"beside": self.beside.facts}),
        }

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        noised, given = self.drawn(samples, step)
        raw = self.model.raw(noised.seen, noised.levels.sigma, given)
        return self.denoising.loss(noised, raw)

    def drawn(self, samples: list[tuple[int, int]], step: int) -> tuple[Noised, Conditioning]:
        """A batch of (epoch, index) pairs with its noise, and what the network is told of each sample."""
        streams = sample_generators(self.seed, "diffusion", step, samples)
        mean, deviation = self.latents.of(samples, self.seed)
        x0 = self.autoencoder.scale_factor * (mean + deviation * normal(streams, mean.shape[1:]))
        x0 = x0.to(self.device)
        noised = self.denoising.noised(x0, streams, step)
        dropped = torch.stack([torch.rand((), generator=g) for g in streams]) < self.caption_dropout
        return noised, self.conditioning(samples, dropped.tolist(), streams)

    def conditioning(
        self, samples: list[tuple[int, int]], dropped: list[bool], streams: list[torch.Generator]
    ) -> Conditioning:
        """What the network is given of each sample; of a `dropped` one nothing that guidance is to act on."""
        texts = [
            "" if drop else caption(self.data.records[i], self.captions, generator(self.seed, "caption", epoch, i))
            for (epoch, i), drop in zip(samples, dropped, strict=True)
        ]
        given = Conditioning() if self.beside is None else self.beside.of(samples, streams)
        return replace(given.to(self.device), context=self.context(texts))

    def context(self, texts: list[str]) -> Tensor:
        """Text states, B L D. A caption that comes again is not encoded again while there is room, unless the encoder
        trains."""
        assert self.text is not None and self.states is not None
        if not self.trains_text:
            return self.states.of(texts)
        distinct = list(dict.fromkeys(texts))
        return self.text.states(distinct)[torch.tensor([distinct.index(t) for t in texts])]

    def previewed(self) -> tuple[Conditioning, Conditioning, list[Tensor]]:
        """What previews are made of, with and without what guidance acts on, and rows of pictures to show above them.

        With `beside`, an empty prompt stands for the caption of the example that it comes with.
        """
        texts = list(self.preview_prompts)
        given = Conditioning()
        shown: list[Tensor] = []
        if self.beside is not None:
            indices, given, shown = self.beside.examples(len(texts))
            texts = [t or str(self.data.records[i]["caption"]) for t, i in zip(texts, indices, strict=True)]
        given = given.to(self.device)
        cond = replace(given, context=self.context(texts))
        return cond, replace(given, context=self.context([""] * len(texts))), shown

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """Pictures with seeds 0, 1, ..., 20 steps of DPM-Solver++(2M)."""
        cond, uncond, shown = self.previewed()
        given = cond.context if cond.context is not None else cond.labels
        assert given is not None
        model = replace(self.model, network=network_of(module))
        x = sampled(model, self.latents.shape, len(given), cond, uncond, self.preview_guidance)
        pictures = self.autoencoder.decode(x)
        columns = len(given) if shown else 8
        save_grid(path, torch.cat([*(row.to(pictures) for row in shown), pictures]), columns=columns)
