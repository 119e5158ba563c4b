"""The autoencoder with the constant that brings its latents to unit variance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from langevin.networks import strips
from langevin.networks.autoencoder import AutoencoderKL


@dataclass(eq=False)
class Autoencoder:
    """Pictures to latents and back: the network and the scale of its latents (Rombach et al. 2022, section G)."""

    network: AutoencoderKL
    scale_factor: float = 0.18215
    """Latents are the network's own, times this. 0.18215 in Stable Diffusion, 0.08333 in its x4 upscaler."""
    in_strips: bool = False
    """Work strip by strip: the same within rounding, in less memory and more time (`langevin.networks.strips`)."""

    @property
    def downsampling(self) -> int:
        """Pixels along one side of a latent's cell: 8 in Stable Diffusion."""
        return self.network.config.factor

    @property
    def latent_channels(self) -> int:
        return self.network.config.latent_channels

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents B C h w of `image`, B 3 H W in [-1, 1], in the image's dtype; H and W are multiples of
        `downsampling`.

        The mean of the posterior, or with `noise` (unit Gaussian, B C h w) a sample of it.
        """
        f = self.downsampling
        if image.shape[-2] % f or image.shape[-1] % f:
            raise ValueError(f"image of {tuple(image.shape[-2:])} (H, W): both must be multiples of {f}")
        pixels = image.to(self.dtype)
        mean, logvar = strips.encode(self.network, pixels) if self.in_strips else self.network.moments(pixels)
        latents = mean.to(image.dtype)
        if noise is not None:
            latents = latents + torch.exp(0.5 * logvar.to(image.dtype)) * noise.to(latents)
        return latents * self.scale_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures B 3 H W, about [-1, 1] (not clamped), of `latents` B C h w, in the latents' dtype."""
        z = (latents / self.scale_factor).to(self.dtype)
        image = strips.decode(self.network, z) if self.in_strips else self.network.decode(z)
        return image.to(latents.dtype)
