"""The KL autoencoder: reconstruction + Kullback-Leibler (Rombach et al. 2022, section 3.1 and appendix G), and, where
they are wanted, a perceptual and an adversarial term."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.errors import RequestError
from langevin.images.grids import save_grid
from langevin.networks.autoencoder import AutoencoderKL
from langevin.training.data import PictureSet
from langevin.training.objectives.adversarial import Adversarial, AdversarialConfig, Adversaries, with_discriminator
from langevin.training.objectives.perceptual import Perceptual
from langevin.training.randomness import normal, sample_generators


class AutoencoderObjective:
    """L1 on the pixels and on their differences to the neighbours, and a small KL that keeps latents near a Gaussian.

    The differences weigh edges, on which the eye judges flat drawings, and need no network of features. Squares of the
    pixels' errors pull harder where a whole area has the wrong colour; L1 is content with the median there. A
    perceptual term measures the error in the features of a frozen network; a discriminator, which trains beside, tells
    whether patches look like pictures at all. `module` is the network itself, or with a discriminator both.

    crop: side in pixels of the random square of each picture that is learned from; None: the whole picture.
    RequestError where it does not fit the pictures or the network's factor.
    """

    def __init__(
        self,
        network: AutoencoderKL,
        data: PictureSet,
        *,
        seed: int,
        kl_weight: float,
        edge_weight: float,
        square_weight: float = 0.0,
        device: str,
        crop: int | None = None,
        perceptual: Perceptual | None = None,
        adversarial: AdversarialConfig | None = None,
    ) -> None:
        if crop is not None:
            smallest = min(side for part in data.parts for side in part.shape[-2:])
            if crop % network.config.factor or crop > smallest:
                raise RequestError(
                    f"autoencoder.crop {crop}: a multiple of the factor {network.config.factor} and at most the "
                    f"pictures' {smallest} pixels"
                )
        self.module: nn.Module = with_discriminator(network, adversarial).to(device)
        self.network = network
        self.data = data
        self.seed = seed
        self.kl_weight = kl_weight
        self.edge_weight = edge_weight
        self.square_weight = square_weight
        self.device = device
        self.crop = crop
        self.perceptual = perceptual
        self.adversarial_config = adversarial
        self.adversarial: Adversarial | None = None
        if adversarial is not None:
            assert isinstance(self.module, Adversaries)
            self.adversarial = Adversarial(self.module.discriminator, adversarial.weight, adversarial.start)

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "data": self.data.fingerprint,
            "kl_weight": self.kl_weight,
            "edge_weight": self.edge_weight,
        }
        if self.square_weight:
            facts["square_weight"] = self.square_weight
        if self.crop is not None:
            facts["crop"] = self.crop
        if self.perceptual is not None:
            facts["perceptual"] = self.perceptual.facts
        if self.adversarial_config is not None:
            facts["adversarial"] = self.adversarial_config.model_dump(mode="json")
        return facts

    def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = self.data.views(samples, self.seed).to(self.device)
        if self.crop is not None:
            images = cropped(images, self.crop, sample_generators(self.seed, "crop", step, samples))
        mean, logvar = self.network.moments(images)
        mean, logvar = mean.float(), logvar.float()
        noise = normal(sample_generators(self.seed, "posterior", step, samples), mean.shape[1:]).to(mean)
        output = self.network.decode(mean + torch.exp(0.5 * logvar) * noise).float()
        pixel = F.l1_loss(output, images)
        edge = torch.as_tensor(sum(F.l1_loss(torch.diff(output, dim=d), torch.diff(images, dim=d)) for d in (2, 3)))
        # KL(q || N(0, 1)) of a diagonal Gaussian, mean over the latent's elements.
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        psnr = -10 * torch.log10(F.mse_loss(output.detach().clamp(-1, 1), images) / 4)
        figures = {"l1": pixel.detach(), "edge": edge.detach(), "kl": kl.detach(), "psnr": psnr}
        reconstruction = pixel + self.edge_weight * edge
        if self.square_weight:
            reconstruction = reconstruction + self.square_weight * F.mse_loss(output, images)
        if self.perceptual is not None:
            distance = self.perceptual.distance(output, images).mean()
            reconstruction = reconstruction + self.perceptual.weight * distance
            figures["perceptual"] = distance.detach()
        loss = reconstruction + self.kl_weight * kl
        if self.adversarial is not None and step >= self.adversarial.start:
            terms = self.adversarial.terms(images, output, reconstruction, self.network.decoder.conv_out.weight)
            loss = loss + terms.generator + terms.discriminator
            figures |= terms.figures
        elif self.adversarial is not None:
            figures |= self.adversarial.idle(pixel.detach())
        return loss, figures

    @torch.no_grad()
    def preview(self, module: nn.Module, path: Path) -> None:
        """Eight pictures above their reconstructions from the latent mean."""
        codec = module.codec if isinstance(module, Adversaries) else module
        assert isinstance(codec, AutoencoderKL)
        images = self.data.images(self.data.some(8)).to(self.device)
        save_grid(path, torch.cat([images, codec.decode(codec.moments(images)[0])]), columns=8)


def cropped(images: Tensor, side: int, generators: Sequence[torch.Generator]) -> Tensor:
    """A random square of each picture, B C side side, its place from the picture's own generator. images: B C H W."""
    squares = []
    for image, stream in zip(images, generators, strict=True):
        y, x = (int(torch.randint(size - side + 1, (), generator=stream)) for size in image.shape[-2:])
        squares.append(image[:, y : y + side, x : x + side])
    return torch.stack(squares)


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
