"""Noise schedules: the table of noise levels that a discrete-time model was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST_ABAR = 2.0**-24
"""A zero terminal SNR would be sigma = infinity. The last abar is held at this value instead (sigma = 4096), where
signal is below float32's resolution of the noise, as in diffusers."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels of the training timesteps 0 ... T-1."""

    sigmas: Tensor
    """float64 [T], strictly ascending, sigma_t = sqrt((1 - abar_t) / abar_t)."""

    def __post_init__(self) -> None:
        s = self.sigmas
        if s.dtype != torch.float64 or s.ndim != 1 or len(s) < 2:
            raise ValueError(f"sigmas must be a float64 table of at least 2 entries, got {s.dtype} {tuple(s.shape)}")
        if not (torch.isfinite(s).all() and s[0] > 0 and (s[1:] > s[:-1]).all()):
            raise ValueError("sigmas must be finite, positive and strictly ascending")

    # -- constructors ---------------------------------------------------------------------------------------------

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """From the forward process's variances, [T] in (0, 1) (Ho et al. 2020, equation 2)."""
        return cls.from_abar(torch.cumprod(1 - betas.to(torch.float64), 0))

    @classmethod
    def from_abar(cls, abar: Tensor) -> NoiseSchedule:
        """From the cumulative products of 1 - beta, [T], descending in (0, 1)."""
        abar = abar.to(torch.float64)
        return cls(torch.sqrt((1 - abar) / abar))

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas in equal steps (Ho et al. 2020, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> NoiseSchedule:
        """Square roots of beta in equal steps: Stable Diffusion's schedule (which its code calls "linear")."""
        return cls.from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """abar(t) = cos^2(((t/T + s) / (1 + s)) pi/2), betas clipped (Nichol & Dhariwal 2021, equation 17)."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
        return cls.from_betas(torch.clamp(1 - f[1:] / f[:-1], max=max_beta))

    @classmethod
    def sigmoid(
        cls, steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
    ) -> NoiseSchedule:
        """abar(t) from a sigmoid of t between `start` and `end` (Jabri et al. 2023; Chen 2023, algorithm 1)."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        lo, hi = torch.sigmoid(torch.tensor([start / tau, end / tau], dtype=torch.float64))
        f = (hi - torch.sigmoid((t * (end - start) + start) / tau)) / (hi - lo)
        return cls.from_betas(torch.clamp(1 - f[1:] / f[:-1], max=max_beta))

    @classmethod
    def geometric(cls, steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0) -> NoiseSchedule:
        """log sigma in equal steps: the range of EDM (Karras et al. 2022, table 1), whose training needs no table."""
        return cls(torch.logspace(math.log2(sigma_min), math.log2(sigma_max), steps, 2, dtype=torch.float64))

    def rescaled_zero_terminal_snr(self) -> NoiseSchedule:
        """The schedule shifted and scaled so that the last step is pure noise (Lin et al. 2024, algorithm 1).

        The last abar is 2^-24 instead of 0, so that sigma stays finite; it is half of the one before where that is
        smaller still, as on the linear schedule of 1000 steps, so that sigma goes on rising.
        """
        root = torch.sqrt(self.abar)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        abar = root**2
        abar[-1] = min(_SMALLEST_ABAR, float(abar[-2]) / 2)
        return NoiseSchedule.from_abar(abar)

    # -- the table ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def abar(self) -> Tensor:
        """Cumulative product of 1 - beta, float64 [T]."""
        return 1 / (1 + self.sigmas**2)

    @property
    def betas(self) -> Tensor:
        """Variances of the forward process, float64 [T]."""
        abar = self.abar
        return 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at timestep `t` in [0, T-1], float64: the table's own entries at whole t, log-linear between."""
        t = torch.as_tensor(t, dtype=torch.float64, device=self.sigmas.device).clamp(0, len(self) - 1)
        low = t.floor().long()
        high = t.ceil().long()
        w = t - low
        between = torch.exp((1 - w) * torch.log(self.sigmas[low]) + w * torch.log(self.sigmas[high]))
        return torch.where(w == 0, self.sigmas[low], between)

    def t(self, sigma: Tensor | float) -> Tensor:
        """Timestep at noise level `sigma`, float64 in [0, T-1]: the inverse of `sigma(t)`, exact at table entries.

        Levels outside the table give its first or last timestep.
        """
        s = torch.as_tensor(sigma, dtype=torch.float64, device=self.sigmas.device)
        high = torch.searchsorted(self.sigmas, s.contiguous()).clamp(1, len(self) - 1)
        low = high - 1
        a, b = self.sigmas[low], self.sigmas[high]
        inside = s.clamp(min=self.sigma_min, max=self.sigma_max)
        w = (torch.log(inside) - torch.log(a)) / (torch.log(b) - torch.log(a))
        t = low + w
        return torch.where(inside == b, high.to(torch.float64), torch.where(inside == a, low.to(torch.float64), t))

    def prior(self, noise: Tensor, sigma: float | None = None) -> Tensor:
        """The state that sampling starts from: `sigma * noise` at the largest level, or at the one given."""
        return (self.sigma_max if sigma is None else sigma) * noise
