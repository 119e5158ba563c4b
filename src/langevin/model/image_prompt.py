"""Pictures as prompts: what an IP-Adapter makes of one, and a U-Net that is told it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from langevin.networks.clip import ClipImage
from langevin.networks.ip_adapter import Beside, IPAdapter, decoupled
from langevin.networks.unet import UNet


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """CLIP's image tower, with how its pictures are normalised."""

    tower: ClipImage
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    """Of each channel from 0 to 1, as it was trained."""
    files: tuple[Path, ...] = ()
    """What its weights were read from."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """pixels: B 3 S S in [0, 1], S the tower's size. Returns the same on its device, in its precision."""
        weight = next(self.tower.parameters())
        mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return ((pixels - mean.to(pixels)) / deviation.to(pixels)).to(weight.device, weight.dtype)


@dataclass(frozen=True, eq=False)
class ImagePrompter:
    """An IP-Adapter with the image encoder that it was trained with."""

    adapter: IPAdapter
    encoder: ImageEncoder

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What a picture says and what none says, each B N C. pixels: B 3 S S in [0, 1], S the encoder's size.

        None is, as in the authors' program, a vector of zeros for adapters of the picture's one vector, and for the
        others the states of zeros in place of normalised pixels.
        """
        normal = self.encoder.normalised(pixels)
        tower = self.encoder.tower
        if self.adapter.config.kind == "linear":
            image = tower(normal)
            none = torch.zeros_like(image)
        else:
            image, none = tower.states(normal, -2), tower.states(torch.zeros_like(normal), -2)
        return self.adapter(image), self.adapter(none)


@dataclass(frozen=True, eq=False)
class ImagePrompts:
    """All pictures that a run is told of beside the text."""

    beside: Sequence[Beside]
    tokens: Tensor
    """Those of every picture, one after the other, 1 N C."""
    without: Tensor
    """The same of no picture: what goes with the negative prompt."""

    @classmethod
    def of(
        cls, prompters: Sequence[ImagePrompter], pixels: Sequence[Tensor], strengths: Sequence[float]
    ) -> ImagePrompts:
        """pixels: one picture for each prompter, 1 3 S S in [0, 1]. strengths: what each one's attention is multiplied
        with."""
        found = [prompter.tokens(picture) for prompter, picture in zip(prompters, pixels, strict=True)]
        beside = [
            Beside(prompter.adapter, strength, tokens.shape[1])
            for prompter, strength, (tokens, _) in zip(prompters, strengths, found, strict=True)
        ]
        return cls(beside, torch.cat([tokens for tokens, _ in found], 1), torch.cat([none for _, none in found], 1))

    def told(self, network: nn.Module) -> nn.Module:
        """A copy of the U-Net that attends to the pictures, weights shared."""
        assert isinstance(network, UNet)
        return decoupled(network, self.beside)
