"""A finished diffusion model, of pixels or latents, as one family among the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from langevin.baselines.modelfile import parameter_count
from langevin.baselines.pixels import as_rgb
from langevin.diffusion.core import Estimate
from langevin.diffusion.grids import make_grid
from langevin.diffusion.guidance import clipped
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.evaluation.figures import Figure
from langevin.evaluation.generation import network_config
from langevin.evaluation.pairs import likelihood_figures
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning


class DiffusionPictures:
    """An unconditional model, sampled by DPM-Solver++(2M)."""

    def __init__(self, bundle: ModelBundle, *, steps: int, ode_steps: int = 50) -> None:
        """steps: of the sampler. ode_steps: intervals of the probability-flow ODE, for the likelihood."""
        self.bundle = bundle
        self.steps = steps
        self.ode_steps = ode_steps
        for network in bundle.networks().values():
            network.requires_grad_(False).eval()

    @property
    def parameters(self) -> int:
        """The U-Net's and, of latents, the decoder's."""
        count = parameter_count(self.bundle.diffusion.network)
        if self.bundle.autoencoder is not None:
            codec = self.bundle.autoencoder.network
            count += parameter_count(codec.decoder) + parameter_count(codec.post_quant_conv)
        return count

    @torch.no_grad()
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """float32 B 3 S S in [-1, 1]."""
        model, codec = self.bundle.diffusion, self.bundle.autoencoder
        side = self.bundle.info.default_size[0] // (codec.downsampling if codec else 1)
        noise = Noise(seeds, (network_config(self.bundle).in_channels, side, side), device=model.device)
        x = model.schedule.prior(noise.initial())
        sigmas = make_grid("trailing", model.schedule, self.steps)

        def denoiser(x: Tensor, sigma: float) -> Estimate:
            return model.denoise(x, sigma, Conditioning())

        # Of pixels it is known where they lie, of latents not.
        bounded = denoiser if codec else clipped(denoiser)
        for step in SAMPLERS["dpmpp_2m"].function(bounded, x, sigmas, noise):
            x = step.x
        return as_rgb((codec.decode(x) if codec else x).float().cpu())

    def likelihood(self, pictures: Tensor, *, seed: int) -> list[Figure]:
        """By the probability-flow ODE, and the variational bound; none for a model of latents."""
        if self.bundle.autoencoder is not None:
            return []
        return likelihood_figures(
            self.bundle, pictures, [{}] * len(pictures), seed=seed, steps=self.ode_steps, batch=len(pictures)
        )
