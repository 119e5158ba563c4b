"""A PixelCNN++ as a system: trained by maximum likelihood, sampled pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from langevin.baselines import modelfile
from langevin.baselines.family import exact_likelihood
from langevin.baselines.logistic import draw, log_probability, split
from langevin.baselines.pixelcnn_network import PixelByPixel, PixelCnn, PixelCnnConfig
from langevin.baselines.pixels import as_rgb, check_channels, from_levels, pixels, to_levels
from langevin.evaluation.figures import Figure
from langevin.images.grids import save_grid
from langevin.training.checkpointing import load_ema
from langevin.training.config import Config, LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.system import System

KIND = "pixelcnn"


class PixelCnnStage(Config):
    network: PixelCnnConfig
    loop: LoopConfig


class PixelCnnSystem(System):
    """Pixels one after the other, each from a mixture of logistic distributions."""

    pixelcnn: PixelCnnStage

    trial: ClassVar[tuple[str, ...]] = (
        "data.size=8", "pixelcnn.network.size=8", "pixelcnn.network.width=8", "pixelcnn.network.levels=2",
    )  # fmt: skip

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {KIND: self.pixelcnn.loop}

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        return PixelCnnObjective(PixelCnn(self.pixelcnn.network), data, seed=self.seed, device=device)

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights, float32."""
        network = load_ema(run / KIND / "checkpoints", PixelCnn(self.pixelcnn.network))
        path = run / "model.safetensors"
        modelfile.write_model(path, KIND, asdict(self.pixelcnn.network), network)
        return path


class PixelCnnObjective:
    """Mean negative log-likelihood in bits per dimension (Salimans et al. 2017, section 2)."""

    def __init__(self, network: PixelCnn, data: PictureSet, *, seed: int, device: str) -> None:
        check_channels(data, network.config.channels, network.config.size)
        self.module: nn.Module = network.to(device)
        self.channels = network.config.channels
        self.data = data
        self.seed = seed
        self.device = device

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {"data": self.data.fingerprint}

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = pixels(self.data, samples, self.seed, self.channels).to(self.device)
        return bits_per_dim(self.module(images).float(), images).mean(), {}

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """Sixteen samples, seeds 0 to 15."""
        assert isinstance(module, PixelCnn)
        save_grid(path, TrainedPixelCnn(module).sample(range(16)), columns=8)


def bits_per_dim(parameters: Tensor, images: Tensor) -> Tensor:
    """[B]: -log2 P(x) / (C H W). parameters: B P H W; images: B C H W on the 256 levels of [-1, 1]."""
    nats = -log_probability(split(parameters, images.shape[1]), images).sum((1, 2))
    return nats / (math.log(2) * images[0].numel())


class TrainedPixelCnn:
    """A finished PixelCNN++: samples and exact likelihoods."""

    def __init__(self, network: PixelCnn) -> None:
        self.network = network.eval()

    @property
    def parameters(self) -> int:
        return modelfile.parameter_count(self.network)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """float32 B 3 S S in [-1, 1]: a network evaluation for each pixel, at that pixel alone."""
        config = self.network.config
        total = config.size**2
        uniform = torch.stack([
            torch.rand(total, 1 + config.channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ])  # fmt: skip
        steps = PixelByPixel(self.network, len(seeds))
        made = []
        for n in range(total):
            pixel = draw(split(steps.parameters_of_next().float(), config.channels), uniform[:, n].to(steps.device))
            steps.put(pixel)
            made.append(pixel.cpu())
        return as_rgb(torch.stack(made, 2).unflatten(2, (config.size, config.size)))

    def likelihood(self, pictures: Tensor, *, seed: int) -> list[Figure]:
        """Exact; nothing is drawn."""
        bits = [self.bits_per_dim(part.float() / 127.5 - 1) for part in pictures.split(64)]
        return exact_likelihood(torch.cat(bits), seed)

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor) -> Tensor:
        """Exact, float64 [B]; images: B 3 S S."""
        levels = from_levels(to_levels(images[:, : self.network.config.channels])).to(self.network.out.weight.device)
        return bits_per_dim(self.network(levels).double(), levels.double()).cpu()
