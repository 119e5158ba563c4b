"""The KL autoencoder: reconstruction + Kullback-Leibler (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.images.grids import save_grid
from langevin.networks.autoencoder import AutoencoderKL
from langevin.training.data import PictureSet
from langevin.training.randomness import normal, sample_generators


class AutoencoderObjective:
    """L1 on the pixels and on their differences to the neighbours, and a small KL that keeps latents near a Gaussian.

    The differences weigh edges, on which the eye judges flat drawings, and need no network of features.
    """

    def __init__(
        self, network: AutoencoderKL, data: PictureSet, *, seed: int, kl_weight: float, edge_weight: float, device: str
    ) -> None:
        self.module: nn.Module = network.to(device)
        self.network = network
        self.data = data
        self.seed = seed
        self.kl_weight = kl_weight
        self.edge_weight = edge_weight
        self.device = device

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        return {"data": self.data.fingerprint, "kl_weight": self.kl_weight, "edge_weight": self.edge_weight}

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = self.data.views(samples, self.seed).to(self.device)
        mean, logvar = self.network.moments(images)
        mean, logvar = mean.float(), logvar.float()
        noise = normal(sample_generators(self.seed, "posterior", step, samples), mean.shape[1:]).to(mean)
        output = self.network.decode(mean + torch.exp(0.5 * logvar) * noise).float()
        pixel = F.l1_loss(output, images)
        edge = sum(F.l1_loss(torch.diff(output, dim=d), torch.diff(images, dim=d)) for d in (2, 3))
        # KL(q || N(0, 1)) of a diagonal Gaussian, mean over the latent's elements.
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        psnr = -10 * torch.log10(F.mse_loss(output.detach().clamp(-1, 1), images) / 4)
        loss = pixel + self.edge_weight * edge + self.kl_weight * kl
        return loss, {"l1": pixel.detach(), "edge": torch.as_tensor(edge).detach(), "kl": kl.detach(), "psnr": psnr}

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """Eight pictures above their reconstructions from the latent mean."""
        assert isinstance(module, AutoencoderKL)
        images = self.data.images(self.data.some(8)).to(self.device)
        save_grid(path, torch.cat([images, module.decode(module.moments(images)[0])]), columns=8)


@torch.no_grad()
def encode_all(
    network: AutoencoderKL,
    data: PictureSet,
    device: str,
    indices: Tensor | None = None,
    *,
    mirrored: bool = False,
    batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of the latents of some pictures of one bucket, or of all pictures; of their mirror
    images if `mirrored`. float32 N C h w on the CPU."""
    means, deviations = [], []
    for some in (torch.arange(len(data)) if indices is None else indices).split(batch):
        images = data.images(some, torch.full((len(some),), mirrored)).to(device)
        mean, logvar = network.moments(images)
        means.append(mean.float().cpu())
        deviations.append(torch.exp(0.5 * logvar.float()).cpu())
    return torch.cat(means), torch.cat(deviations)
