"""What every diffusion objective shares: noise in, loss out, stated in x0-space whatever the network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from langevin.diffusion.core import Estimate
from langevin.evaluation.likelihood import decoder_term, transition_term
from langevin.model.diffusion_model import DiffusionModel, per_image
from langevin.training.config import Config
from langevin.training.objectives.levels import Drawn, LevelConfig, Levels, check_parameters, make_levels
from langevin.training.objectives.weighting import Weighting
from langevin.training.randomness import normal


class DenoisingConfig(Config):
    """The loss of a diffusion stage. docs/objectives.md has the formulae."""

    weighting: Weighting = Weighting.SNR_PLUS_ONE
    """Of the noise levels in the loss."""
    gamma: float | None = Field(None, gt=0)
    """Of the weightings min_snr, soft_min_snr and p2; null is the published value."""
    k: float | None = Field(None, gt=0)
    """Of the weighting p2; null is the published value."""
    levels: LevelConfig = LevelConfig()
    """How noise levels are drawn."""
    noise_offset: float = Field(0.0, ge=0, le=1)
    """Deviation of the noise that is the same for all pixels of a channel, added to the noise: pictures get darker and
    brighter as a whole (Guttenberg 2023). 0.1 is usual."""
    input_perturbation: float = Field(0.0, ge=0, le=1)
    """Deviation, in units of sigma, of noise that the network's input has and its target does not know of: the network
    learns to live with its own errors in sampling (Ning et al. 2023). 0.1 in the paper."""

    @model_validator(mode="after")
    def _parameters_are_used(self) -> DenoisingConfig:
        check_parameters(self, f"weighting {self.weighting}", self.weighting.parameters, ("gamma", "k"))
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """These fields alone, of whatever else a stage has: JSON."""
        return self.model_dump(mode="json", include=set(DenoisingConfig.model_fields))


class Noised(NamedTuple):
    """A batch with its noise."""

    x0: Tensor
    """B C H W."""
    x: Tensor
    """x0 + sigma eps: what the network's estimate is judged by."""
    seen: Tensor
    """What the network is given: x, or x perturbed."""
    levels: Drawn


class Denoising:
    """mean over the batch of w(sigma) c_out^2 |F - F*|^2, and with a learned variance `variational` times the sum of
    the bound's terms (Nichol & Dhariwal 2021, equation 16)."""

    def __init__(self, model: DiffusionModel, config: DenoisingConfig, *, variational: float = 0.0) -> None:
        self.model = model
        self.config = config
        self.variational = variational
        self.levels = make_levels(config.levels, model.schedule)

    def noised(self, x0: Tensor, streams: Sequence[torch.Generator], step: int) -> Noised:
        """Each sample noised from its own stream. x0: B C H W."""
        eps = normal(streams, x0.shape[1:]).to(x0)
        if self.config.noise_offset:
            eps = eps + self.config.noise_offset * normal(streams, (x0.shape[1], 1, 1)).to(x0)
        drawn = self.levels.draw(streams, step)
        sigma = per_image(drawn.sigma, x0)
        x = seen = x0 + sigma * eps
        if self.config.input_perturbation:
            seen = x + self.config.input_perturbation * sigma * normal(streams, x0.shape[1:]).to(x0)
        return Noised(x0, x, seen, drawn)

    def loss(self, noised: Noised, raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the network's raw output for `noised.seen`, and its parts: 0-dimensional tensors."""
        sigma = noised.levels.sigma
        fraction = None
        if self.model.learned_variance:
            raw, v = raw.chunk(2, 1)
            fraction = (v + 1) / 2
        target = self.model.target(noised.x0, noised.x, sigma)
        c_out = self.model.prediction.coefficients(sigma, self.model.sigma_data).c_out
        weight = (self.weight(sigma) * c_out**2).to(raw.device, raw.dtype)
        per_sample = (raw - target).square().mean((1, 2, 3))
        terms = weight * per_sample
        parts = {"unweighted": per_sample.detach().mean()}
        if fraction is not None:
            bits = self.bound_terms(noised, raw.detach(), fraction)
            terms = terms + self.variational * len(self.model.schedule) * bits
            parts["bound"] = (noised.levels.share.to(bits) * bits.detach()).mean() * len(self.model.schedule)
        self.levels.note(noised.levels, terms.detach())
        return (noised.levels.share.to(terms) * terms).mean(), parts

    def weight(self, sigma: Tensor) -> Tensor:
        """w(sigma), float64."""
        config = self.config
        return config.weighting.of(sigma, gamma=config.gamma, k=config.k, sigma_data=self.model.sigma_data)

    def bound_terms(self, noised: Noised, raw: Tensor, fraction: Tensor) -> Tensor:
        """L_t of each sample at its timestep, bits per dimension [B]. Ho et al. 2020, equation 5, with the variance of
        Nichol & Dhariwal 2021, equation 15.

        raw: B C H W, which should be detached where the mean is not to learn from the bound. fraction: B C H W.
        """
        t, sigmas = noised.levels.t, self.model.schedule.sigmas
        assert t is not None  # or the configuration would have been refused
        c_skip, c_out, _ = self.model.prediction.coefficients(noised.levels.sigma, self.model.sigma_data)
        x0_hat = per_image(c_skip, raw) * noised.x + per_image(c_out, raw) * raw
        s = sigmas[t].view(-1, 1, 1, 1)
        bits = raw.new_zeros(len(raw))
        for rows, decoded in ((torch.nonzero(t == 0)[:, 0], True), (torch.nonzero(t > 0)[:, 0], False)):
            if not len(rows):
                continue
            there = rows.to(raw.device)
            x0, found = noised.x0[there], Estimate(x0_hat[there], fraction[there])
            if decoded:
                part = decoder_term(x0, found, sigmas[0], sigmas[1])
            else:
                part = transition_term(x0, found, s[rows], sigmas[t[rows] - 1].view(-1, 1, 1, 1))
            bits = bits.index_copy(0, there, part)
        return bits


class Trained(nn.Module):
    """A network together with what its noise levels have learned, so that checkpoints hold both."""

    def __init__(self, network: nn.Module, levels: Levels) -> None:
        super().__init__()
        self.network = network
        self.levels = levels


def with_levels(network: nn.Module, levels: Levels) -> nn.Module:
    """What is trained and saved: the network, with the levels where they have a state of their own."""
    return Trained(network, levels) if any(True for _ in levels.buffers()) else network


def network_of(module: nn.Module) -> nn.Module:
    """The network in what `with_levels` gave."""
    return module.network if isinstance(module, Trained) else module
