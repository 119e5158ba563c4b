"""What every family's finished model can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from langevin.evaluation.figures import Figure


class PictureModel(Protocol):
    """A model that makes pictures from seeds."""

    @property
    def parameters(self) -> int:
        """Numbers that sampling uses."""
        ...

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """float32 B 3 H W in [-1, 1]. A picture is a function of its own seed; of the batch, to rounding, it is not."""
        ...

    def likelihood(self, pictures: Tensor, *, seed: int) -> list[Figure]:
        """Bits per dimension of pictures, uint8 N 3 H W; none where the family has no likelihood.

        A dimension is a channel of a pixel as the model sees it: one for grey. The first figure is the one to compare.
        """
        ...


def exact_likelihood(bits: Tensor, seed: int) -> list[Figure]:
    """The figure of a model that gives each picture's probability itself. bits: per dimension, [N]."""
    return [
        Figure(
            name="bits/dim (exact)",
            value=float(bits.mean()),
            better="lower",
            deviation=float(bits.std(correction=0)),
            reference=len(bits),
            seed=seed,
        )
    ]
