"""A GAN as a system: generator and discriminator trained at once, by one loss and one backward pass a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, assert_never

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from langevin.baselines import modelfile
from langevin.baselines.gan_network import Gan, GanConfig, Generator
from langevin.baselines.pixels import as_rgb, check_channels, pixels
from langevin.errors import DataError
from langevin.evaluation.figures import Figure
from langevin.images.grids import save_grid
from langevin.training.checkpointing import load_ema
from langevin.training.config import Config, LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.randomness import normal, sample_generators
from langevin.training.system import System

KIND = "gan"


class GanLoss(StrEnum):
    NON_SATURATING = "non_saturating"
    """log(1 + e^-D(x)) + log(1 + e^D(G(z))), and log(1 + e^-D(G(z))) for the generator (Goodfellow et al. 2014)."""
    HINGE = "hinge"
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))), and -D(G(z)) for the generator (Lim & Ye 2017)."""

    def of_discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """[B] each, logits; a 0-dimensional loss."""
        match self:
            case GanLoss.NON_SATURATING:
                return F.softplus(-real).mean() + F.softplus(fake).mean()
            case GanLoss.HINGE:
                return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            case _:
                assert_never(self)

    def of_generator(self, fake: Tensor) -> Tensor:
        match self:
            case GanLoss.NON_SATURATING:
                return F.softplus(-fake).mean()
            case GanLoss.HINGE:
                return -fake.mean()
            case _:
                assert_never(self)


class GanStage(Config):
    network: GanConfig
    objective: GanLoss = GanLoss.NON_SATURATING
    r1: float = Field(1.0, ge=0)
    """Weight gamma of the penalty gamma/2 |grad D(x)|^2 on real pictures (Mescheder et al. 2018, equation 9)."""
    r1_every: int = Field(4, gt=0)
    """Steps from one penalty, this many times as heavy, to the next (Karras et al. 2020, appendix B)."""
    loop: LoopConfig


class GanSystem(System):
    """A generator against a discriminator."""

    gan: GanStage

    trial: ClassVar[tuple[str, ...]] = ("data.size=16", "gan.network.size=16", "gan.network.width=8")

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {KIND: self.gan.loop}

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        return GanObjective(Gan(self.gan.network), data, self.gan, seed=self.seed, device=device)

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: the averaged generator, float32. The discriminator is not kept."""
        both = load_ema(run / KIND / "checkpoints", Gan(self.gan.network))
        assert isinstance(both, Gan)
        path = run / "model.safetensors"
        modelfile.write_model(path, KIND, asdict(self.gan.network), both.generator)
        return path


class GanObjective:
    """The sum of the generator's loss, in which the discriminator's weights are constants, and the discriminator's, in
    which the generated pictures are: each network's gradient is that of its own loss.

    Both networks take their step from the same state (simultaneous gradient descent).
    """

    def __init__(self, network: Gan, data: PictureSet, stage: GanStage, *, seed: int, device: str) -> None:
        config = network.config
        check_channels(data, config.channels, config.size)
        self.labels = _labels(data, config.num_classes)
        self.module: nn.Module = network.to(device)
        self.network = network
        self.data = data
        self.stage = stage
        self.seed = seed
        self.device = device

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {"data": self.data.fingerprint, **self.stage.model_dump(mode="json", exclude={"network", "loop"})}

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, critic = self.network.config, self.network.discriminator
        real = pixels(self.data, samples, self.seed, config.channels).to(self.device)
        labels = None if self.labels is None else self.labels[[i for _, i in samples]].to(self.device)
        z = normal(sample_generators(self.seed, "latent", step, samples), (config.latent,)).to(self.device)
        fake = self.network.generator(z, labels).float()
        constants = {name: p.detach() for name, p in critic.named_parameters()}
        generator_loss = self.stage.objective.of_generator(functional_call(critic, constants, (fake, labels)).float())
        penalised = self.stage.r1 > 0 and step % self.stage.r1_every == 0
        real.requires_grad_(penalised)
        on_real, on_fake = critic(real, labels).float(), critic(fake.detach(), labels).float()
        critic_loss = self.stage.objective.of_discriminator(on_real, on_fake)
        figures = {"generator_loss": generator_loss.detach(), "discriminator_loss": critic_loss.detach()}
        loss = generator_loss + critic_loss
        if penalised:
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            penalty = slope.square().sum((1, 2, 3)).mean()
            loss = loss + self.stage.r1_every * self.stage.r1 / 2 * penalty
            figures["r1"] = penalty.detach()
        return loss, figures

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """Sixty-four samples, seeds 0 to 63."""
        assert isinstance(module, Gan)
        save_grid(path, TrainedGan(module.generator).sample(range(64)), columns=8)


def _labels(data: PictureSet, classes: int | None) -> Tensor | None:
    """int64 [N]. Raises DataError where a record has no label below `classes`."""
    if classes is None:
        return None
    labels = [record.get("label") for record in data.records]
    wrong = next((i for i, n in enumerate(labels) if type(n) is not int or not 0 <= n < classes), None)
    if wrong is not None:
        raise DataError(
            f"picture {wrong} has the label {labels[wrong]!r}: num_classes {classes} needs 0 to {classes - 1}"
        )
    return torch.tensor(labels)


class TrainedGan:
    """A finished generator. It has no likelihood."""

    def __init__(self, network: Generator) -> None:
        self.network = network.eval()

    @property
    def parameters(self) -> int:
        return modelfile.parameter_count(self.network)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """float32 B 3 S S in [-1, 1]; where there are classes, each is as likely as another."""
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        device = self.network.first.weight.device
        z = normal(streams, (self.network.config.latent,)).to(device)
        labels = None
        if (classes := self.network.config.num_classes) is not None:
            labels = torch.stack([torch.randint(classes, (), generator=g) for g in streams]).to(device)
        return as_rgb(self.network(z, labels).float().cpu())

    def likelihood(self, pictures: Tensor, *, seed: int) -> list[Figure]:
        """None: a GAN gives no probabilities."""
        return []
