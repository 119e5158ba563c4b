"""Data distributions whose denoiser, and whose probability-flow solution, are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from langevin.diffusion.core import Estimate


class Problem(Protocol):
    """One data distribution over independent scalars; every tensor below may have any shape."""

    @property
    def name(self) -> str: ...

    def denoise(self, x: Tensor, sigma: float) -> Estimate:
        """E[x0 | x] for `x = x0 + sigma eps`."""
        ...

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """The exact solution at noise level `end` of `dx/dsigma = (x - D(x, sigma)) / sigma` from x at `start`."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean, std^2). With std = 0 it is a point mass: D is constant and the flow is a straight line in sigma."""

    mean: float = 0.4
    std: float = 1.0
    name: str = "gaussian"

    def denoise(self, x: Tensor, sigma: float) -> Estimate:
        c2, s2 = self.std * self.std, sigma * sigma
        return Estimate((c2 * x + s2 * self.mean) / (c2 + s2))

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        return self.mean + (x - self.mean) * math.sqrt((self.std**2 + end**2) / (self.std**2 + start**2))

    def variance(self, sigma: float) -> float:
        """Of x at a noise level."""
        return self.std**2 + sigma**2

    def consistency(self, x: Tensor, sigma: float) -> Estimate:
        """The flow's end point: what a perfectly distilled consistency model gives (Song et al. 2023)."""
        return Estimate(self.flow(x, sigma, 0.0))

    def denoise_with_variance(self, x: Tensor, sigma: float, sigma_next: float) -> Estimate:
        """With the fraction that a perfectly learned reverse variance would have for the step to `sigma_next`.

        The exact reverse variance is `(c^2 + s1^2)(s^2 - s1^2) / (c^2 + s^2)`; Nichol & Dhariwal 2021, equation 15,
        places it by the logarithm between the two fixed choices, which are its values at c = 0 and c = 1.
        """

        def reverse(c2: float) -> float:
            return (c2 + sigma_next**2) / (c2 + sigma**2)

        fraction = math.log(reverse(self.std**2) / reverse(0.0)) / math.log(reverse(1.0) / reverse(0.0))
        return Estimate(self.denoise(x, sigma).x0, torch.full_like(x, fraction))


@dataclass(frozen=True)
class Mixture:
    """x0 from a mixture of scalar Gaussians.

    In one dimension the flow keeps the order of points, so it keeps the distribution function: the solution from
    `start` to `end` is `F_end^-1(F_start(x))`, exact to rounding, without any solver.
    """

    weights: tuple[float, ...] = (0.35, 0.65)
    means: tuple[float, ...] = (-1.1, 0.8)
    stds: tuple[float, ...] = (0.35, 0.55)
    name: str = "mixture"

    def _components(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).view(-1, *[1] * x.ndim)

        return column(self.weights), column(self.means), column(self.stds).square() + sigma**2

    def denoise(self, x: Tensor, sigma: float) -> Estimate:
        weight, mean, variance = self._components(x, sigma)
        c2 = variance - sigma**2
        log_density = torch.log(weight) - (x - mean) ** 2 / (2 * variance) - torch.log(variance) / 2
        posterior = torch.softmax(log_density, 0)
        return Estimate((posterior * (c2 * x + sigma**2 * mean) / variance).sum(0).to(x.dtype))

    def cdf(self, x: Tensor, sigma: float) -> Tensor:
        weight, mean, variance = self._components(x, sigma)
        return (weight * torch.special.ndtr((x - mean) / variance.sqrt())).sum(0)

    def quantile(self, p: Tensor, sigma: float) -> Tensor:
        """Inverse of `cdf`, by bisection until float64 is exhausted."""
        reach = max(abs(m) for m in self.means) + 12 * math.hypot(max(self.stds), sigma)
        low, high = torch.full_like(p, -reach), torch.full_like(p, reach)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(middle, sigma) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        return self.quantile(self.cdf(x, start), end)

    def moments(self) -> tuple[float, float]:
        """Mean and variance of the data."""
        mean = sum(w * m for w, m in zip(self.weights, self.means, strict=True))
        second = sum(w * (m * m + c * c) for w, m, c in zip(self.weights, self.means, self.stds, strict=True))
        return mean, second - mean * mean
