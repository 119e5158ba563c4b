"""What every family's finished model can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class PictureModel(Protocol):
    """A model that makes pictures from seeds."""

    @property
    def parameters(self) -> int:
        """Numbers that sampling uses."""
        ...

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """float32 B 3 H W in [-1, 1]. A picture is a function of its own seed, whatever the batch."""
        ...

    def bits_per_dim(self, images: Tensor) -> Tensor | None:
        """Bits per dimension, float64 [B], of B 3 H W on the 256 levels of [-1, 1]; None where the family has no
        likelihood. A dimension is a channel of a pixel as the model sees it: one for grey."""
        ...
