"""Features in few dimensions, for distances that need more samples than dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from langevin.errors import DataError


@dataclass(frozen=True, eq=False)
class Principal:
    """The directions in which some features vary most."""

    mean: Tensor
    axes: Tensor
    """float64 [D, K], orthonormal, by falling variance."""
    explained: float
    """Share of the variance that lies in these directions."""

    @classmethod
    def of(cls, features: Tensor, count: int) -> Principal:
        """The first `count` principal components of features [N, D]; all where there are no more.

        Raises DataError where there are none.
        """
        if features.ndim != 2 or len(features) < 2 or count < 1:
            raise DataError(f"{count} components of {tuple(features.shape)} features: at least 1 of 2 rows is needed")
        x = features.double()
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        kept = min(count, len(values))
        return cls(mean, vectors[:, :kept], float(values[:kept].sum() / values.sum().clamp(min=1e-300)))

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D] -> float64 [N, K]. With all components distances stay as they were."""
        return (features.double() - self.mean) @ self.axes
