"""What a denoiser is conditioned on, fixed before sampling starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langevin.diffusion.tiles import Tile
from langevin.errors import RequestError
from langevin.networks.controlnet import ControlNet


@dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """How strongly something steers, and at which noise levels."""

    strength: float = 1.0
    sigma_start: float = float("inf")
    """It acts while sigma_end < sigma <= sigma_start: where two windows meet, one of them acts."""
    sigma_end: float = 0.0

    def acts_at(self, sigma: float) -> bool:
        return self.sigma_end < sigma <= self.sigma_start


@dataclass(frozen=True, eq=False)
class Control(Window):
    """One ControlNet with its hint already embedded: the part that is constant over the sampling steps."""

    network: ControlNet
    features: Tensor
    """The hint's features, B C H W at latent size, from `network.embed_hint`."""
    guess: bool = False
    """Guess mode, as the ControlNet's authors call it: it acts with the prompt and not with the negative one, and its
    residuals are weighed by stage, from 0.1 at the first to 1 in the middle, evenly in the logarithm (as diffusers
    does; the authors' own weights are 0.825^12 to 1). Pooled residuals are not weighed."""
    rows: slice | None = None
    """Which images of the batch it acts on; None: all of them."""


@dataclass(frozen=True, eq=False)
class Adapter(Window):
    """One T2I-Adapter's answer to its hint: constant over the sampling steps."""

    features: tuple[Tensor, ...]
    """For each level of the U-Net's way down, the highest resolution first: B C h w."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Everything beside x and sigma that the network is given. Each field has the batch as its first dimension."""

    context: Tensor | None = None
    """Text states, B L D."""
    labels: Tensor | None = None
    """Class labels, or the noise level of the x4 upscaler: int64 [B]."""
    concat: Tensor | None = None
    """Further input channels, B C H W at latent size: mask and masked image, depth, low-resolution picture."""
    images: Tensor | None = None
    """Tokens of pictures, B M D, which the U-Net is given after the text states, and ControlNets are not."""
    controls: tuple[Control, ...] = ()
    adapters: tuple[Adapter, ...] = ()

    def to(self, device: torch.device | str) -> Conditioning:
        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            context=move(self.context),
            labels=move(self.labels),
            concat=move(self.concat),
            images=move(self.images),
            controls=tuple(replace(c, features=c.features.to(device)) for c in self.controls),
            adapters=tuple(replace(a, features=tuple(f.to(device) for f in a.features)) for a in self.adapters),
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
            images=part(self.images),
            controls=tuple(replace(c, features=c.features[images]) for c in self.controls),
            adapters=tuple(replace(a, features=tuple(f[images] for f in a.features)) for a in self.adapters),
        )

    def within(self, tile: Tile) -> Conditioning:
        """What belongs to a part of the picture: further channels and hints cut to it.

        Raises RequestError for adapters, whose features at lower resolutions cannot be cut at any place.
        """
        if self.adapters:
            raise RequestError("T2I-Adapters do not act in tiles: leave tile out, or steer by a ControlNet")
        return replace(
            self,
            concat=None if self.concat is None else tile.of(self.concat),
            controls=tuple(replace(c, features=tile.of(c.features)) for c in self.controls),
        )


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """One conditioning for the batches of `parts` one after the other: they must have the same fields and lengths.

    Controls in guess mode may be those of some parts alone: each acts on its own part's images.
    """
    first = parts[0]

    def join(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        if all(v is None for v in values):
            return None
        if any(v is None for v in values):
            raise ValueError(f"cannot batch conditionings: only some of them have {name!r}")
        return torch.cat(values)

    common = [[c for c in p.controls if not c.guess] for p in parts]
    if any(len(c) != len(common[0]) for c in common):
        raise ValueError("cannot batch conditionings with different numbers of controls")
    if any(len(p.adapters) != len(first.adapters) for p in parts):
        raise ValueError("cannot batch conditionings with different numbers of adapters")
    return Conditioning(
        context=join("context"),
        labels=join("labels"),
        concat=join("concat"),
        images=join("images"),
        controls=(
            *(
                replace(control, features=torch.cat([c[i].features for c in common]))
                for i, control in enumerate(common[0])
            ),
            *_guessing(parts),
        ),
        adapters=tuple(
            replace(adapter, features=tuple(map(torch.cat, zip(*(p.adapters[i].features for p in parts), strict=True))))
            for i, adapter in enumerate(first.adapters)
        ),
    )


def _guessing(parts: Sequence[Conditioning]) -> Iterator[Control]:
    """The controls in guess mode, each with the rows of its part."""
    start = 0
    for part in parts:
        for control in part.controls:
            if control.guess:
                yield replace(control, rows=slice(start, start + len(control.features)))
        given = part.context if part.context is not None else part.labels
        start += 0 if given is None else len(given)
