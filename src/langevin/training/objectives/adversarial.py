"""The adversarial term of an autoencoder: a discriminator that learns beside it (Esser et al. 2021, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.discriminator import DiscriminatorConfig, PatchDiscriminator
from langevin.training.config import Config

_LARGEST = 1e4
"""Bound of the adaptive weight."""


class AdversarialConfig(Config):
    """A patch discriminator beside the autoencoder."""

    network: DiscriminatorConfig = DiscriminatorConfig(layers=2)
    weight: float = Field(0.5, gt=0)
    """Of the generator's term, after its gradient has been brought to the size of the reconstruction's."""
    start: int = Field(ge=0)
    """The first step at which the discriminator judges and learns. Before it the loss is as without."""


class Adversaries(nn.Module):
    """Autoencoder and discriminator: what trains, and what a checkpoint holds, under `codec.` and `discriminator.`."""

    def __init__(self, codec: AutoencoderKL, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.codec = codec
        self.discriminator = discriminator


def with_discriminator(codec: AutoencoderKL, config: AdversarialConfig | None) -> nn.Module:
    """What trains and is saved: the autoencoder itself, or with a discriminator both. Give this to `load_ema`, and
    `codec` has its weights."""
    return codec if config is None else Adversaries(codec, PatchDiscriminator(config.network))


class Terms(NamedTuple):
    """What adversarial training adds to the loss: the sum of `generator` and `discriminator`."""

    generator: Tensor
    """Weighted. Its gradient reaches the autoencoder alone."""
    discriminator: Tensor
    """Its gradient reaches the discriminator alone."""
    figures: dict[str, Tensor]
    """0-dimensional, for the record."""


@dataclass(frozen=True, eq=False)
class Adversarial:
    """The terms of one step, as parts of a single loss."""

    discriminator: PatchDiscriminator
    weight: float
    start: int

    def terms(self, real: Tensor, output: Tensor, reconstruction: Tensor, last: Tensor) -> Terms:
        """real, output: B C H W in [-1, 1]. reconstruction: the loss whose gradient at `last`, the decoder's last
        layer, the generator's gradient is matched to."""
        # Frozen: the same numbers, but nothing that a gradient could reach. Not `requires_grad_(False)`, which would
        # have to be undone, and would leave autocast's copies of the weights without their gradient.
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, frozen, (output,)).float()
        wanted = -judged.mean()
        adaptive = adaptive_weight(reconstruction, wanted, last)
        on_real = self.discriminator(real).float()
        on_output = self.discriminator(output.detach()).float()
        hinge = (F.relu(1 - on_real).mean() + F.relu(1 + on_output).mean()) / 2
        figures = {
            "generator": wanted.detach(),
            "discriminator": hinge.detach(),
            "adaptive_weight": adaptive,
            "score_real": on_real.detach().mean(),
            "score_output": on_output.detach().mean(),
        }
        return Terms(self.weight * adaptive * wanted, hinge, figures)

    def idle(self, like: Tensor) -> dict[str, Tensor]:
        """The figures of a step before `start`."""
        names = ("generator", "discriminator", "adaptive_weight", "score_real", "score_output")
        return dict.fromkeys(names, torch.zeros_like(like))


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last: Tensor) -> Tensor:
    """`|d reconstruction / d last| / (|d generator / d last| + 1e-4)`, at most 10,000 (equation 7). A constant."""
    with torch.autocast(last.device.type, enabled=False):
        (a,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
        (b,) = torch.autograd.grad(generator, last, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-4)).clamp(0, _LARGEST).detach()
