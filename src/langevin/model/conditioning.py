"""What a denoiser is conditioned on, fixed before sampling starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langevin.networks.controlnet import ControlNet


@dataclass(frozen=True, eq=False)
class Control:
    """One ControlNet with its hint already embedded: the part that is constant over the sampling steps."""

    network: ControlNet
    features: Tensor
    """The hint's features, B C H W at latent size, from `network.embed_hint`."""
    strength: float = 1.0
    sigma_start: float = float("inf")
    """The control acts while sigma_end <= sigma <= sigma_start."""
    sigma_end: float = 0.0

    def acts_at(self, sigma: float) -> bool:
        return self.sigma_end <= sigma <= self.sigma_start


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Everything beside x and sigma that the network is given. Each field has the batch as its first dimension."""

    context: Tensor | None = None
    """Text states, B L D."""
    labels: Tensor | None = None
    """Class labels, or the noise level of the x4 upscaler: int64 [B]."""
    concat: Tensor | None = None
    """Further input channels, B C H W at latent size: mask and masked image, depth, low-resolution picture."""
    controls: tuple[Control, ...] = ()

    def to(self, device: torch.device | str) -> Conditioning:
        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            context=move(self.context),
            labels=move(self.labels),
            concat=move(self.concat),
            controls=tuple(replace(c, features=c.features.to(device)) for c in self.controls),
        )

    def __getitem__(self, images: slice) -> Conditioning:
        """The conditioning of a part of the batch."""

        def part(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[images]

        return replace(
            self,
            context=part(self.context),
            labels=part(self.labels),
            concat=part(self.concat),
            controls=tuple(replace(c, features=c.features[images]) for c in self.controls),
        )


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """One conditioning for the batches of `parts` one after the other: they must have the same fields and lengths."""
    first = parts[0]

    def join(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        if all(v is None for v in values):
            return None
        if any(v is None for v in values):
            raise ValueError(f"cannot batch conditionings: only some of them have {name!r}")
        return torch.cat(values)

    if any(len(p.controls) != len(first.controls) for p in parts):
        raise ValueError("cannot batch conditionings with different numbers of controls")
    return Conditioning(
        context=join("context"),
        labels=join("labels"),
        concat=join("concat"),
        controls=tuple(
            replace(control, features=torch.cat([p.controls[i].features for p in parts]))
            for i, control in enumerate(first.controls)
        ),
    )
