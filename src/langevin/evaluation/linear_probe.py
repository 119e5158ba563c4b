"""Drawing styles told apart by features and pixels: a linear classifier that is fitted at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langevin.errors import DataError


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Linear discriminant analysis (Fisher 1936): Gaussian classes of one covariance, equally likely."""

    classes: tuple[str, ...]
    mean: Tensor
    deviation: Tensor
    weight: Tensor
    """float64 [D, K]."""
    bias: Tensor
    """float64 [K]."""

    @classmethod
    def fit(cls, features: Tensor, labels: Sequence[str], *, shrinkage: float = 0.01) -> LinearProbe:
        """features: [N, D], which are standardised. shrinkage: how much of the covariance is replaced by the identity.

        Raises DataError where there are not one label each and at least two classes.
        """
        classes = tuple(sorted(set(labels)))
        if features.ndim != 2 or len(features) != len(labels) or len(classes) < 2:
            raise DataError(
                f"{tuple(features.shape)} features with {len(labels)} labels of {len(classes)} classes: a probe needs "
                "one label each and at least two classes"
            )
        x = features.double()
        mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
        x = (x - mean) / deviation
        y = torch.tensor([classes.index(label) for label in labels])
        centres = torch.stack([x[y == k].mean(0) for k in range(len(classes))])  # K D
        rest = x - centres[y]
        covariance = rest.T @ rest / len(x)
        covariance = (1 - shrinkage) * covariance + shrinkage * torch.eye(len(covariance), dtype=torch.float64)
        weight = torch.linalg.solve(covariance, centres.T)  # D K
        return cls(classes, mean, deviation, weight, -0.5 * (centres.T * weight).sum(0))

    def __call__(self, features: Tensor) -> list[str]:
        """The class of each row."""
        x = (features.double() - self.mean) / self.deviation
        return [self.classes[i] for i in (x @ self.weight + self.bias).argmax(1).tolist()]


def style_statistics(pictures: Tensor) -> Tensor:
    """What tells drawing styles apart by pixels alone, float32 [N, 10], of uint8 N 3 H W on white.

    Of the ink: its share and box, how colourful, grey, dark and varied it is, and how often neighbouring pixels differ
    not at all, slightly (shading) or strongly (edges).
    """
    rows = []
    for part in pictures.split(128):
        x = part.float() / 255
        ink = (part.amin(1) < 231).float()  # N H W
        drawn = ink.sum((1, 2)).clamp(min=1)
        light, spread = x.mean(1), x.amax(1) - x.amin(1)

        def mean(values: Tensor, over: Tensor = ink) -> Tensor:
            return (values * over).sum((1, 2)) / over.sum((1, 2)).clamp(min=1)

        level = mean(light)
        varied = mean((light - level[:, None, None]).square()).sqrt()
        across = (x[..., 1:] - x[..., :-1]).abs().amax(1)
        both = ink[..., 1:] * ink[..., :-1]
        width, height = ink.amax(1).sum(1), ink.amax(2).sum(1)
        rows.append(
            torch.stack(
                [
                    drawn / ink[0].numel(),
                    width / ink.shape[2],
                    height / ink.shape[1],
                    mean(spread),
                    mean((spread < 0.06).float()),
                    mean((light < 0.25).float()),
                    level,
                    varied,
                    mean((across < 0.008).float(), both),
                    mean((across > 0.1).float(), both),
                ],
                1,
            )
        )
    return torch.cat(rows)
