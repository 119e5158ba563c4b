"""An ImageGPT as a system: trained by maximum likelihood on tokens, sampled token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.baselines import modelfile
from langevin.baselines.clusters import assign, colours, k_means
from langevin.baselines.family import exact_likelihood
from langevin.baselines.imagegpt_network import ImageGpt, ImageGptConfig, TokenByToken
from langevin.baselines.pixels import as_rgb, check_channels, pixels, to_levels
from langevin.evaluation.figures import Figure
from langevin.images.grids import save_grid
from langevin.training.checkpointing import load_ema
from langevin.training.config import Config, LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.randomness import generator
from langevin.training.system import System

KIND = "imagegpt"


class ImageGptStage(Config):
    network: ImageGptConfig
    loop: LoopConfig


class ImageGptSystem(System):
    """Pixels as tokens, one after the other, by a transformer."""

    imagegpt: ImageGptStage

    trial: ClassVar[tuple[str, ...]] = (
        "data.size=8", "imagegpt.network.size=8", "imagegpt.network.width=16", "imagegpt.network.layers=1",
        "imagegpt.network.heads=2",
    )  # fmt: skip

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {KIND: self.imagegpt.loop}

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        return ImageGptObjective(ImageGpt(self.imagegpt.network), data, seed=self.seed, device=device)

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights, float32."""
        network = load_ema(run / KIND / "checkpoints", ImageGpt(self.imagegpt.network))
        path = run / "model.safetensors"
        modelfile.write_model(path, KIND, asdict(self.imagegpt.network), network)
        return path


class ImageGptObjective:
    """Mean negative log-likelihood of a token, in bits (Chen et al. 2020, equation 1).

    The palette is found in the data before the first step; it is a buffer of the network.
    """

    def __init__(self, network: ImageGpt, data: PictureSet, *, seed: int, device: str) -> None:
        config = network.config
        check_channels(data, config.channels, config.size)
        if config.clusters is not None:
            stream = generator(seed, "clusters")
            values, weights = colours(data.pictures, config.channels, stream)
            network.palette.copy_(k_means(values, weights, config.clusters, generator=stream))
        self.module: nn.Module = network.to(device)
        self.network = network
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
        images = pixels(self.data, samples, self.seed, self.network.config.channels).to(self.device)
        tokens = tokens_of(self.network, images)
        logits = self.module(tokens).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()) / math.log(2), {}

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """Sixteen samples, seeds 0 to 15."""
        assert isinstance(module, ImageGpt)
        save_grid(path, TrainedImageGpt(module).sample(range(16)), columns=8)


def tokens_of(network: ImageGpt, images: Tensor) -> Tensor:
    """int64 B N: the token of each pixel of B C H W in [-1, 1], in reading order."""
    if network.config.clusters is None:
        return to_levels(images).flatten(1)
    values = images.movedim(1, -1).flatten(0, -2)  # BHW C
    return assign(values, network.palette).view(len(images), -1)


class TrainedImageGpt:
    """A finished ImageGPT: samples, and exact likelihoods where its tokens are the levels of grey pixels."""

    def __init__(self, network: ImageGpt) -> None:
        self.network = network.eval()

    @property
    def parameters(self) -> int:
        return modelfile.parameter_count(self.network)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """float32 B 3 S S in [-1, 1]: a network evaluation for each pixel, with the earlier ones' keys and values."""
        config = self.network.config
        total = config.size**2
        uniform = torch.stack([
            torch.rand(total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds
        ])  # fmt: skip
        steps = TokenByToken(self.network, len(seeds))
        made = []
        for n in range(total):
            chances = F.softmax(steps.logits_of_next().double(), -1).cpu()
            # The first token whose cumulated probability exceeds the uniform number.
            token = (chances.cumsum(1) <= uniform[:, n, None]).sum(1).clamp(max=config.vocabulary - 1)
            token = token.to(self.network.start.device)
            steps.put(token)
            made.append(token)
        drawn = self.network.palette[torch.stack(made, 1)]  # B N C
        return as_rgb(drawn.transpose(1, 2).unflatten(2, (config.size, config.size)).float().cpu())

    def likelihood(self, pictures: Tensor, *, seed: int) -> list[Figure]:
        """Exact, and nothing is drawn; none where pixels are rounded to clusters: the model then gives probabilities
        of the rounded pictures only, which cannot be compared."""
        if self.network.config.clusters is not None:
            return []
        bits = [self.bits_per_dim(part.float() / 127.5 - 1) for part in pictures.split(64)]
        return exact_likelihood(torch.cat(bits), seed)

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor) -> Tensor:
        """Of a token, float64 [B], of B 3 S S in [-1, 1]. Where tokens are grey levels, it is the pictures' own."""
        tokens = tokens_of(self.network, images[:, : self.network.config.channels].to(self.network.start.device))
        logits = self.network(tokens).double()
        nats = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)
        return (nats / math.log(2)).cpu()
