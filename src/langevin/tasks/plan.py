"""A plan: everything that a run needs, decided before the first network call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from langevin.diffusion.core import Denoiser
from langevin.diffusion.inpainting import BoundSampler
from langevin.diffusion.noise import Noise
from langevin.tasks.request import GenerateRequest

Decode = Callable[[Tensor], Tensor]
"""Latents B C h w to pictures B 3 H W in about [-1, 1], of the very size asked for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """What is going to be computed. It can be looked at, changed with `dataclasses.replace`, and run any number of
    times: nothing in it changes while it runs."""

    request: GenerateRequest
    """As asked, with every default filled in and every seed fixed: the same request gives the same pictures."""
    denoiser: Denoiser
    """D for any number of the pictures; conditioning and guidance are inside it."""
    x: Tensor
    """Where sampling starts, float32 N C h w, variance-exploding coordinates."""
    sigmas: Tensor
    """The grid, float64 [n + 1], descending."""
    sampler: BoundSampler
    noise: Noise
    """The streams that `x` came from. It is not drawn from: a run takes its own copy of each picture's stream."""
    decode: Decode
    finish: Callable[[Image.Image], Image.Image] | None = None
    """What becomes of each decoded picture last; None: nothing."""
    measure: Callable[[Image.Image], Mapping[str, float]] | None = None
    """Figures of each finished picture, by name; None: none."""
    final_scale: float = 1.0
    """The last state times this is what is decoded: not 1 where another program stops above sigma = 0."""
    batch_size: int = 1
    """Pictures at a time through the networks; 1 makes each independent of the others, bit for bit."""
    calls: int
    """How often one picture asks the denoiser."""
    precision: str = "float32"
    """Of the networks, for messages."""
    denoiser_float32: Callable[[], Denoiser] | None = None
    """Makes what takes over where the denoiser gives NaN or infinity; None where the networks are in float32."""
    decode_float32: Callable[[], Decode] | None = None
    notices: tuple[str, ...] = ()
    """What was decided otherwise than one may expect; the run adds its own."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says beyond the request: tokens, timesteps, conventions."""
    source: Callable[[], Mapping[str, Any]] | None = None
    """Describes the model for the manifest. Called late, since it hashes the weight files."""

    @property
    def count(self) -> int:
        return len(self.x)

    def groups(self) -> Iterator[slice]:
        """The pictures that go through the networks together, in order."""
        for start in range(0, self.count, self.batch_size):
            yield slice(start, min(start + self.batch_size, self.count))
