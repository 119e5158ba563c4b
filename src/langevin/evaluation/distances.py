"""Distances between two sets of pictures, taken on feature vectors: one row a picture, whatever network made them.

Everything is computed in float64 and in tiles, so that memory grows with the features themselves and not with the
number of pairs. No figure means anything without the extractor, the number of samples and the seed beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from langevin.errors import DataError

_ROWS = 2048
"""Side of a tile of pairs: 32 MiB of float64 distances at a time."""


# -- Frechet distance ---------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Mean and covariance of a feature set: all that the Frechet distance keeps of it."""

    mean: Tensor
    """float64 [D]."""
    covariance: Tensor
    """float64 [D, D], unbiased (divided by N - 1)."""


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of features [N, D].

    Raises DataError where N <= D: the covariance is then singular and the distance is governed by the missing
    directions instead of the pictures.
    """
    _check("features", features)
    count, width = features.shape
    if count <= width:
        raise DataError(
            f"{count} samples are too few for features of width {width}: the covariance needs more than {width}; "
            f"give more pictures, or use the kernel distance, which has no such bound"
        )
    mean = sum((tile.sum(0) for tile in _tiles(features)), start=_zeros(features, width)) / count
    total = sum(((tile - mean).T @ (tile - mean) for tile in _tiles(features)), start=_zeros(features, width, width))
    return Moments(mean, total / (count - 1))


def frechet_between(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`.

    Dowson & Landau 1982; Heusel et al. 2017, equation 6. The trace of the root is the sum of the singular values of
    C1^(1/2) C2^(1/2): each root is that of a symmetric matrix, and no square root is taken of a product's rounding.
    Singular covariances are allowed here. Raises DataError where a covariance is not symmetric and positive.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(f"the moments have widths {len(a.mean)} and {len(b.mean)}; both must come from one extractor")
    cross = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    apart = (a.mean.double() - b.mean.double()).square().sum()
    spread = a.covariance.double().trace() + b.covariance.double().trace()
    return max(0.0, float(apart + spread - 2 * cross))


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of two feature sets, [N, D] and [M, D]; with Inception features it is the FID.

    Biased upwards: two sets of one distribution do not give 0 but a floor that falls like 1/N and rises with D (Chong &
    Forsyth 2020). Compare only figures taken with equal N, and state the floor: the distance of two halves of the
    real set. Raises DataError as `moments` does.
    """
    _check_pair(real, fake)
    return frechet_between(moments(real), moments(fake))


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root by eigendecomposition, float64."""
    c = covariance.to(torch.float64)
    scale = float(c.abs().max())
    if c.ndim != 2 or c.shape[0] != c.shape[1] or not torch.allclose(c, c.T, rtol=0, atol=1e-9 * scale):
        raise DataError(f"a covariance must be a symmetric matrix, got shape {tuple(c.shape)}")
    values, vectors = torch.linalg.eigh((c + c.T) / 2)
    if float(values[0]) < -1e-9 * scale * len(c):
        raise DataError(f"a covariance has the eigenvalue {float(values[0]):.3g}; none may be below 0")
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


# -- kernel distance ----------------------------------------------------------------------------------------------


class MeanAndDeviation(NamedTuple):
    """A figure taken on several parts of the data."""

    mean: float
    deviation: float
    """Standard deviation over the parts; not the error of the mean."""


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> MeanAndDeviation:
    """Kernel distance (KID) of two feature sets, [N, D] and [M, D] (Binkowski et al. 2018, section 4).

    The unbiased squared MMD with the kernel `(x.y / D + 1)^3`, averaged over random subsets drawn without repetition.
    Expected to be 0 for equal distributions whatever the number of samples, so single values may be negative.
    """
    _check_pair(real, fake)
    if subsets < 1 or subset_size < 2:
        raise DataError(f"{subsets} subsets of {subset_size}: at least 1 subset of 2 samples is needed")
    if subset_size > min(len(real), len(fake)):
        raise DataError(
            f"subset_size {subset_size} is more than the {min(len(real), len(fake))} samples of the smaller set; "
            f"give more pictures or a smaller subset_size"
        )
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        chosen = [torch.randperm(len(f), generator=generator)[:subset_size].to(f.device) for f in (real, fake)]
        values.append(squared_mmd(real[chosen[0]], fake[chosen[1]]))
    found = torch.tensor(values, dtype=torch.float64)
    return MeanAndDeviation(float(found.mean()), float(found.std(correction=0)))


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD of [N, D] and [M, D] under `(x.y / D + 1)^3` (Gretton et al. 2012, equation 3)."""
    _check_pair(a, b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise DataError(f"{min(n, m)} samples are too few for the kernel distance; at least 2 are needed")
    within = (_kernel_sum(a, a) - _kernel_diagonal(a)) / (n * (n - 1))
    within += (_kernel_sum(b, b) - _kernel_diagonal(b)) / (m * (m - 1))
    return within - 2 * _kernel_sum(a, b) / (n * m)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return sum(float((s @ t.T / a.shape[1] + 1).pow(3).sum()) for s in _tiles(a) for t in _tiles(b))


def _kernel_diagonal(a: Tensor) -> float:
    return sum(float((tile.square().sum(1) / a.shape[1] + 1).pow(3).sum()) for tile in _tiles(a))


# -- fidelity and coverage ----------------------------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    """Of the fake samples: inside the real manifold."""
    recall: float
    """Of the real samples: inside the fake manifold."""


class DensityCoverage(NamedTuple):
    density: float
    """Real balls around a fake sample, divided by k; 1 on average for equal distributions, and it may be more."""
    coverage: float
    """Of the real samples: with a fake one in their ball; in [0, 1]."""


def precision_recall(real: Tensor, fake: Tensor, *, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall of [N, D] and [M, D] (Kynkaanniemi et al. 2019, equations 1 and 2).

    A set's manifold is the union of closed balls around its samples, each reaching the k-th nearest of its own set.
    The balls shrink as samples grow in number: compare only figures of equal N, M and k. One stray sample with a
    large ball can raise either share; density and coverage are robust to that on the real side.
    """
    inside_real = _balls_hit(real, fake, neighbours)
    inside_fake = _balls_hit(fake, real, neighbours)
    return PrecisionRecall(_share(inside_real.containing > 0), _share(inside_fake.containing > 0))


def density_coverage(real: Tensor, fake: Tensor, *, neighbours: int = 5) -> DensityCoverage:
    """Density and coverage of [N, D] and [M, D] (Naeem et al. 2020, equations 3 and 4).

    For equal distributions the expected coverage is `1 - (N-1)...(N-k) / ((N+M-1)...(N+M-k))`, near 1 - 2^-k where
    N = M: that, not 1, is what a perfect model gets.
    """
    hits = _balls_hit(real, fake, neighbours)
    return DensityCoverage(float(hits.containing.double().mean()) / neighbours, _share(hits.filled))


class _Hits(NamedTuple):
    containing: Tensor
    """int64 [M]: in how many balls each point lies."""
    filled: Tensor
    """bool [N]: which balls hold a point."""


def _balls_hit(centres: Tensor, points: Tensor, neighbours: int) -> _Hits:
    _check_pair(centres, points)
    if not 1 <= neighbours < len(centres):
        most = len(centres) - 1
        raise DataError(
            f"neighbours {neighbours} is out of range for {len(centres)} samples; it must be from 1 to {most}"
        )
    # Squared distances are formed from products; near the origin these lose least to cancellation.
    origin = sum((tile.sum(0) for tile in _tiles(centres)), start=_zeros(centres, centres.shape[1])) / len(centres)
    containing = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    filled = []
    for tile in _tiles(centres):
        tile = tile - origin
        nearest = tile.new_empty(len(tile), 0)
        for other in _tiles(centres):
            # One more than k, because each centre is its own nearest.
            both = torch.cat([nearest, _squared_distances(tile, other - origin)], 1)
            nearest = both.topk(min(neighbours + 1, both.shape[1]), dim=1, largest=False).values
        radius = nearest[:, -1:]
        hit = torch.zeros(len(tile), dtype=torch.bool, device=tile.device)
        start = 0
        for other in _tiles(points):
            inside = _squared_distances(tile, other - origin) <= radius
            hit |= inside.any(1)
            containing[start : start + len(other)] += inside.sum(0)
            start += len(other)
        filled.append(hit)
    return _Hits(containing, torch.cat(filled))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp(min=0)


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())


# -- Inception score ----------------------------------------------------------------------------------------------


def inception_score(probabilities: Tensor, *, splits: int = 10) -> MeanAndDeviation:
    """`exp(mean KL(p(y|x) || p(y)))` of class probabilities [N, K], over consecutive parts (Salimans et al. 2016).

    From 1 (no information) to K (each picture sure, all classes equal). It never sees a real picture. Biased downwards
    in small parts, because p(y) is estimated on the part itself: keep N / splits well above K.
    """
    _check("probabilities", probabilities)
    p = probabilities.to(torch.float64)
    if float(p.min()) < 0 or float((p.sum(1) - 1).abs().max()) > 1e-3:
        raise DataError("probabilities must be at least 0 and each row must sum to 1; give them after the softmax")
    if not 1 <= splits <= len(p):
        raise DataError(f"splits {splits} is out of range for {len(p)} samples; it must be from 1 to {len(p)}")
    p = p / p.sum(1, keepdim=True)
    scores = []
    for part in p.tensor_split(splits):
        information = (torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))).sum(1).mean()
        scores.append(information.exp())
    found = torch.stack(scores)
    return MeanAndDeviation(float(found.mean()), float(found.std(correction=0)))


# -- what they share ----------------------------------------------------------------------------------------------


def _tiles(features: Tensor) -> Iterator[Tensor]:
    for part in features.split(_ROWS):
        yield part.to(torch.float64)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)


def _check(name: str, features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point() or 0 in features.shape:
        raise DataError(f"{name} must be floating-point [N, D], got {features.dtype} {tuple(features.shape)}")
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise DataError(f"{name}: row {int(bad.nonzero()[0])} is not finite ({int(bad.sum())} such rows)")


def _check_pair(real: Tensor, fake: Tensor) -> None:
    _check("the first feature set", real)
    _check("the second feature set", fake)
    if real.shape[1] != fake.shape[1]:
        raise DataError(
            f"the feature sets have widths {real.shape[1]} and {fake.shape[1]}; both must come from one extractor"
        )
