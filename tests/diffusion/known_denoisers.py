"""Denoisers known in closed form, for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.noise import Noise

SHAPE = (2, 3, 4)
"""One image: C H W."""


def gaussian(mean: float = 0.3, deviation: float = 0.7) -> Denoiser:
    """D for data N(mean, deviation^2), independent per pixel."""

    def denoise(x: Tensor, sigma: float) -> Estimate:
        part = deviation**2 / (deviation**2 + sigma**2)
        return Estimate(mean + part * (x - mean), torch.full_like(x, 0.3))

    return denoise


def gaussian_flow(x: Tensor, sigma: float, sigma_next: float, mean: float = 0.3, deviation: float = 0.7) -> Tensor:
    """Where the probability flow ODE of `gaussian` takes x."""
    ratio = ((deviation**2 + sigma_next**2) / (deviation**2 + sigma**2)) ** 0.5
    return mean + ratio * (x - mean)


def wavy(x: Tensor, sigma: float) -> Estimate:
    """A denoiser that is nobody's posterior mean: smooth, nonlinear, different at every level and pixel."""
    shrunk = x / (1 + sigma**2) ** 0.5
    x0 = torch.tanh(shrunk) + 0.2 * torch.sin(3 * shrunk + sigma)
    return Estimate(x0, torch.sigmoid(2 * shrunk))


def noise64(*seeds: int, shape: tuple[int, ...] = SHAPE) -> Noise:
    return Noise(seeds or (1, 2), shape, dtype=torch.float64)


def state(sigma: float, *seeds: int) -> Tensor:
    """A start at level sigma, float64, B C H W."""
    return sigma * noise64(*seeds).initial()
