"""Text-conditioned latent diffusion (Ho et al. 2020; Rombach et al. 2022), stated in x0-space."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from langevin.diffusion.grids import make_grid
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.images.grids import save_grid
from langevin.model.autoencoder import Autoencoder
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel, per_image
from langevin.model.guided import guided_model
from langevin.model.text import TextEncoder
from langevin.training.captions import CaptionConfig, caption
from langevin.training.data import PictureSet
from langevin.training.randomness import generator, normal, sample_generators


class Weighting(StrEnum):
    """Loss weights, stated for x0: times c_out^2 they are the weights of any prediction type's own error."""

    SNR_PLUS_ONE = "snr_plus_one"
    """1 / sigma^2 + 1: every level counts alike in the error of v (Salimans & Ho 2022). Most weight on high noise,
    where what a picture shows is decided."""
    SNR = "snr"
    """1 / sigma^2: every level counts alike in the error of epsilon (Ho et al. 2020, the simple loss)."""
    MIN_SNR = "min_snr"
    """min(1 / sigma^2, 5) (Hang et al. 2023)."""

    def of(self, sigma: Tensor) -> Tensor:
        """The weight at noise levels `sigma` (float64, any shape)."""
        match self:
            case Weighting.SNR_PLUS_ONE:
                return sigma**-2 + 1
            case Weighting.SNR:
                return sigma**-2
            case Weighting.MIN_SNR:
                return torch.clamp(sigma**-2, max=5.0)
            case _:
                assert_never(self)


class DiffusionObjective:
    """mean over the batch of w(sigma) c_out^2 |F - F*|^2, with the weight w of a `Weighting`.

    The autoencoder and the text tower are frozen: latents are encoded once, text states on the way.
    """

    def __init__(
        self,
        model: DiffusionModel,
        autoencoder: Autoencoder,
        text: TextEncoder,
        data: PictureSet,
        latents: tuple[Tensor, Tensor],
        captions: CaptionConfig,
        *,
        seed: int,
        caption_dropout: float,
        weighting: Weighting,
        preview_prompts: tuple[str, ...],
        preview_guidance: float,
        device: str,
        trains_text: bool = False,
    ) -> None:
        """trains_text: gradients go through the text tower too, for whoever trains a part of it."""
        self.module: nn.Module = model.network.to(device)
        self.model = model
        self.autoencoder = autoencoder
        self.text = text
        self.data = data
        self.mean, self.deviation = latents
        self.captions = captions
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.weighting = weighting
        self.preview_prompts = preview_prompts
        self.preview_guidance = preview_guidance
        self.device = device
        self.trains_text = trains_text

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "data": self.data.fingerprint,
            "captions": self.captions.model_dump(mode="json"),
            "caption_dropout": self.caption_dropout,
            "weighting": self.weighting.value,
        }

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        streams = sample_generators(self.seed, "diffusion", step, samples)
        indices = torch.tensor([i for _, i in samples])
        mean, deviation = self.mean[indices], self.deviation[indices]
        x0 = self.autoencoder.scale_factor * (mean + deviation * normal(streams, mean.shape[1:]))
        x0 = x0.to(self.device)
        eps = normal(streams, mean.shape[1:]).to(self.device)
        t = torch.stack([torch.randint(len(self.model.schedule), (), generator=g) for g in streams])
        sigma = self.model.schedule.sigmas[t]
        dropped = torch.stack([torch.rand((), generator=g) for g in streams]) < self.caption_dropout
        texts = [
            "" if drop else caption(self.data.records[i], self.captions, generator(self.seed, "caption", epoch, i))
            for (epoch, i), drop in zip(samples, dropped.tolist(), strict=True)
        ]
        x = x0 + per_image(sigma, x0) * eps
        raw = self.model.raw(x, sigma, Conditioning(context=self.context(texts)))
        target = self.model.target(x0, x, sigma)
        c_out = self.model.prediction.coefficients(sigma).c_out
        weight = (self.weighting.of(sigma) * c_out**2).to(self.device, torch.float32)
        per_sample = (raw - target).square().mean((1, 2, 3))
        return (weight * per_sample).mean(), {"unweighted": per_sample.detach().mean()}

    def context(self, texts: list[str]) -> Tensor:
        """Text states, B L D; equal captions are encoded once."""
        distinct = list(dict.fromkeys(texts))
        tokens = self.text.tokens(distinct).to(self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_text):
            states: Tensor = self.text.network(tokens, layer=self.text.layer).states
        return states[torch.tensor([distinct.index(t) for t in texts])]

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """The preview prompts with seeds 0, 1, ..., 20 steps of DPM-Solver++(2M)."""
        model = DiffusionModel(
            module, self.model.schedule, self.model.prediction, self.model.sigma_data, self.model.learned_variance
        )
        count = len(self.preview_prompts)
        cond = Conditioning(context=self.context(list(self.preview_prompts)))
        uncond = Conditioning(context=self.context([""] * count))
        sigmas = make_grid("trailing", model.schedule, 20)
        noise = Noise(range(count), tuple(self.mean.shape[1:]))
        x = model.schedule.prior(noise.initial()).to(self.device)
        denoiser = guided_model(model, cond, uncond, self.preview_guidance)
        for sampled in SAMPLERS["dpmpp_2m"].function(denoiser, x, sigmas, noise):
            x = sampled.x
        save_grid(path, self.autoencoder.decode(x), columns=8)
