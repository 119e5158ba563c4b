"""How much each noise level counts in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import assert_never

import torch
from torch import Tensor


class Weighting(StrEnum):
    """Loss weights, stated for the error of x0: times c_out^2 they are the weights of any prediction's own error.

    With SNR = 1 / sigma^2. All are finite at SNR = 0, where what is left of them is their limit.
    """

    SNR_PLUS_ONE = "snr_plus_one"
    """SNR + 1: every level counts alike in the error of v (Salimans & Ho 2022). Most weight on high noise, where what
    a picture shows is decided."""
    SNR = "snr"
    """SNR: every level counts alike in the error of epsilon (Ho et al. 2020, the simple loss)."""
    TRUNCATED_SNR = "truncated_snr"
    """max(SNR, 1) (Salimans & Ho 2022, section 4)."""
    MIN_SNR = "min_snr"
    """min(SNR, gamma), gamma 5 (Hang et al. 2023)."""
    SOFT_MIN_SNR = "soft_min_snr"
    """SNR gamma / (SNR + gamma) = 1 / (sigma^2 + 1 / gamma), gamma 4 (Crowson et al. 2024)."""
    P2 = "p2"
    """SNR / (k + SNR)^gamma, k 1, gamma 1 (Choi et al. 2022): less weight on low noise."""
    EDM = "edm"
    """SNR + 1 / sigma_data^2: every level counts alike in the error of EDM's network (Karras et al. 2022, table 1)."""
    DEBIASED = "debiased"
    """sqrt(SNR): 1 / sqrt(SNR) in the error of epsilon (Yu et al. 2023)."""

    @property
    def parameters(self) -> Mapping[str, float]:
        """Its parameters with their published values."""
        match self:
            case Weighting.MIN_SNR:
                return {"gamma": 5.0}
            case Weighting.SOFT_MIN_SNR:
                return {"gamma": 4.0}
            case Weighting.P2:
                return {"gamma": 1.0, "k": 1.0}
            case _:
                return {}

    def of(
        self, sigma: Tensor, *, gamma: float | None = None, k: float | None = None, sigma_data: float = 0.5
    ) -> Tensor:
        """The weight at noise levels `sigma` (float64, any shape, up to infinity). `gamma`, `k`: None is the published
        value; weightings without them do not read them. `sigma_data` is read by EDM alone."""
        snr = sigma**-2
        gamma = self.parameters.get("gamma", 0.0) if gamma is None else gamma
        k = self.parameters.get("k", 0.0) if k is None else k
        match self:
            case Weighting.SNR_PLUS_ONE:
                return snr + 1
            case Weighting.SNR:
                return snr
            case Weighting.TRUNCATED_SNR:
                return torch.clamp(snr, min=1.0)
            case Weighting.MIN_SNR:
                return torch.clamp(snr, max=gamma)
            case Weighting.SOFT_MIN_SNR:
                return 1 / (sigma**2 + 1 / gamma)
            case Weighting.P2:
                return snr / (k + snr) ** gamma
            case Weighting.EDM:
                return snr + sigma_data**-2
            case Weighting.DEBIASED:
                return 1 / sigma
            case _:
                assert_never(self)
