"""Against closed forms, and against the papers' definitions written out pair by pair with numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from langevin.errors import DataError
from langevin.evaluation import distances
from langevin.evaluation.distances import (
    Moments,
    density_coverage,
    frechet_between,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
    squared_mmd,
)


def normal(seed: int, count: int, width: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(count, width, generator=generator, dtype=torch.float64)


def covariance(seed: int, width: int, rank: int | None = None) -> Tensor:
    root = normal(seed, width, rank or width)
    return root @ root.T / width


@pytest.fixture(params=[2048, 7], ids=["one tile", "many tiles"])
def tiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_ROWS", request.param)


# -- Frechet ------------------------------------------------------------------------------------------------------


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    """With diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    m1, m2 = normal(0, 1, 5)[0], normal(1, 1, 5)[0]
    s1, s2 = normal(2, 1, 5)[0].abs(), normal(3, 1, 5)[0].abs()
    found = frechet_between(Moments(m1, s1.square().diag()), Moments(m2, s2.square().diag()))
    assert found == pytest.approx(float((m1 - m2).square().sum() + (s1 - s2).square().sum()), rel=1e-12)


def test_frechet_of_any_gaussians_equals_scipy_root() -> None:
    a, b = Moments(normal(0, 1, 12)[0], covariance(1, 12)), Moments(normal(2, 1, 12)[0], covariance(3, 12))
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    expected = float((a.mean - b.mean).square().sum()) + np.trace(
        a.covariance.numpy() + b.covariance.numpy() - 2 * root
    )
    assert frechet_between(a, b) == pytest.approx(float(np.real(expected)), rel=1e-10)
    assert frechet_between(b, a) == pytest.approx(frechet_between(a, b), rel=1e-12)


def test_frechet_is_exact_where_covariances_are_singular() -> None:
    """Equal ones give 0; ones on orthogonal subspaces have no common root: the sum of both traces."""
    c = covariance(4, 30, rank=3)
    zero = torch.zeros(30, dtype=torch.float64)
    assert frechet_between(Moments(zero, c), Moments(zero, c)) < 1e-12
    first = torch.diag(torch.tensor([2.0, 0, 0], dtype=torch.float64))
    second = torch.diag(torch.tensor([0, 3.0, 0], dtype=torch.float64))
    assert frechet_between(Moments(zero[:3], first), Moments(zero[:3], second)) == pytest.approx(5, rel=1e-12)


def test_moments_equal_numpys(tiled: None) -> None:
    x = normal(5, 40, 6, mean=100)
    found = moments(x.float())
    reference = x.float().double().numpy()
    assert np.allclose(found.mean, reference.mean(0), rtol=1e-13)
    assert np.allclose(found.covariance, np.cov(reference, rowvar=False), rtol=1e-9, atol=1e-12)


def test_frechet_of_shifted_features_is_the_shift_and_its_floor_falls_with_samples() -> None:
    x = normal(6, 200, 8)
    assert frechet_distance(x, x + 0.5) == pytest.approx(8 * 0.25, rel=1e-10)
    few, many = (
        np.mean([frechet_distance(normal(2 * i, n, 8), normal(2 * i + 1, n, 8)) for i in range(30)])
        for n in (250, 1000)
    )
    assert few / many == pytest.approx(4, rel=0.2)  # like 1/N


def test_frechet_says_what_is_wrong() -> None:
    with pytest.raises(DataError, match="8 samples are too few for features of width 8"):
        frechet_distance(normal(0, 8, 8), normal(1, 20, 8))
    with pytest.raises(DataError, match="widths 3 and 4"):
        frechet_distance(normal(0, 9, 3), normal(1, 9, 4))
    broken = normal(0, 9, 3)
    broken[4, 1] = math.nan
    with pytest.raises(DataError, match="row 4 is not finite"):
        frechet_distance(broken, normal(1, 9, 3))
    with pytest.raises(DataError, match=r"\[N, D\]"):
        moments(torch.zeros(3))
    with pytest.raises(DataError, match="eigenvalue -1"):
        frechet_between(Moments(torch.zeros(2), torch.eye(2)), Moments(torch.zeros(2), -torch.eye(2)))
    with pytest.raises(DataError, match="symmetric"):
        frechet_between(Moments(torch.zeros(2), torch.eye(2)), Moments(torch.zeros(2), torch.ones(2, 2).triu()))


# -- kernel -------------------------------------------------------------------------------------------------------


def test_squared_mmd_is_the_sum_over_pairs(tiled: None) -> None:
    a, b = normal(0, 17, 5), normal(1, 23, 5, mean=0.5)

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return sum((float(x[i] @ y[j]) / 5 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert squared_mmd(a, b) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_is_unbiased_and_its_seed_fixes_it() -> None:
    values = torch.tensor([squared_mmd(normal(2 * i, 20, 4), normal(2 * i + 1, 20, 4)) for i in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20  # 0 for equal distributions, with 20 samples
    assert (values < 0).any()
    a, b = normal(0, 60, 4), normal(1, 50, 4, mean=1.0)
    found = kernel_distance(a, b, subsets=20, subset_size=30, seed=3)
    assert found == kernel_distance(a, b, subsets=20, subset_size=30, seed=3)
    assert found != kernel_distance(a, b, subsets=20, subset_size=30, seed=4)
    assert found.mean == pytest.approx(squared_mmd(a, b), abs=3 * found.deviation / math.sqrt(20))
    everything = kernel_distance(a[:50], b, subsets=3, subset_size=50)
    assert everything.mean == pytest.approx(squared_mmd(a[:50], b), rel=1e-10)
    assert everything.deviation < 1e-12


def test_kernel_distance_says_what_is_wrong() -> None:
    with pytest.raises(DataError, match="subset_size 1000 is more than the 50 samples"):
        kernel_distance(normal(0, 60, 4), normal(1, 50, 4))
    with pytest.raises(DataError, match="at least 1 subset of 2"):
        kernel_distance(normal(0, 60, 4), normal(1, 50, 4), subset_size=1)


# -- precision, recall, density, coverage -------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_shares_equal_the_definitions(tiled: None, neighbours: int) -> None:
    real, fake = normal(0, 40, 3, mean=5), normal(1, 31, 3, mean=5.7, scale=0.6)
    to_fake = cdist(real, fake)
    real_radius = np.sort(cdist(real, real), 1)[:, neighbours]
    fake_radius = np.sort(cdist(fake, fake), 1)[:, neighbours]
    in_real = to_fake <= real_radius[:, None]  # [real, fake]
    in_fake = to_fake <= fake_radius[None]
    shares = precision_recall(real, fake, neighbours=neighbours)
    assert shares.precision == pytest.approx(in_real.any(0).mean())
    assert shares.recall == pytest.approx(in_fake.any(1).mean())
    assert 0 < shares.recall < shares.precision < 1 or neighbours != 3  # a narrow model: precise, not diverse
    cover = density_coverage(real, fake, neighbours=neighbours)
    assert cover.density == pytest.approx(in_real.sum() / (neighbours * 31))
    assert cover.coverage == pytest.approx(in_real.any(1).mean())


def test_a_lost_mode_costs_recall_and_coverage_but_not_precision() -> None:
    modes = torch.cat([normal(0, 200, 2), normal(1, 200, 2, mean=20)])
    one = normal(2, 400, 2)
    shares, cover = precision_recall(modes, one), density_coverage(modes, one)
    assert shares.precision > 0.9 and 0.4 < shares.recall <= 0.5
    assert cover.density > 0.9 and 0.4 < cover.coverage <= 0.5


def test_expected_density_and_coverage_of_equal_distributions() -> None:
    n, m, k = 60, 40, 5
    found = [density_coverage(normal(2 * i, n, 2), normal(2 * i + 1, m, 2), neighbours=k) for i in range(150)]
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    coverage = torch.tensor([f.coverage for f in found])
    density = torch.tensor([f.density for f in found])
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / math.sqrt(150)
    assert abs(density.mean() - 1) < 4 * density.std() / math.sqrt(150)


def test_neighbours_are_bounded() -> None:
    with pytest.raises(DataError, match="neighbours 4 is out of range for 4 samples; it must be from 1 to 3"):
        precision_recall(normal(0, 9, 2), normal(1, 4, 2), neighbours=4)
    with pytest.raises(DataError, match="neighbours 0"):
        density_coverage(normal(0, 9, 2), normal(1, 4, 2), neighbours=0)


# -- Inception score ----------------------------------------------------------------------------------------------


def test_inception_score_at_its_bounds_and_by_definition() -> None:
    assert inception_score(torch.eye(10).repeat(20, 1), splits=2) == pytest.approx((10, 0), rel=1e-12)
    assert inception_score(torch.full((30, 10), 0.1), splits=3) == pytest.approx((1, 0), abs=1e-12)
    p = torch.softmax(normal(0, 30, 4), 1).numpy()
    scores = []
    for part in (p[:15], p[15:]):
        divergence = [sum(q * math.log(q / r) for q, r in zip(row, part.mean(0), strict=True)) for row in part]
        scores.append(math.exp(np.mean(divergence)))
    found = inception_score(torch.from_numpy(p), splits=2)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_inception_score_says_what_is_wrong() -> None:
    with pytest.raises(DataError, match="after the softmax"):
        inception_score(normal(0, 30, 4))
    with pytest.raises(DataError, match="splits 10 is out of range for 4 samples"):
        inception_score(torch.eye(4))
