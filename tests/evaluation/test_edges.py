"""Agreement of edges against counts by hand and against distances measured by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from langevin.errors import DataError
from langevin.evaluation.edges import edge_agreement, edges_of
from langevin.images.pixels import to_tensor


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[[c == "#" for c in row] for row in rows]])


def test_counts_by_hand() -> None:
    wanted = drawn("#####", ".....", ".....", ".....")
    found = drawn(".....", "##...", ".....", "..#..")
    precision, recall, f1 = (float(v) for v in edge_agreement(found, wanted, tolerance=1))
    assert precision == pytest.approx(2 / 3)  # two of three lie one row below
    assert recall == pytest.approx(3 / 5)  # the third wanted pixel by the diagonal
    assert f1 == pytest.approx(2 * (2 / 3) * (3 / 5) / (2 / 3 + 3 / 5))
    assert [float(v) for v in edge_agreement(found, wanted, tolerance=0)] == [0, 0, 0]
    assert float(edge_agreement(found, wanted, tolerance=3).precision) == 1


def test_nothing_found_or_wanted() -> None:
    some, none = drawn("#.", ".."), drawn("..", "..")
    assert [float(v) for v in edge_agreement(none, none)] == [1, 1, 1]
    assert [float(v) for v in edge_agreement(none, some)] == [1, 0, 0]
    assert [float(v) for v in edge_agreement(some, none)] == [0, 1, 0]
    assert [float(v) for v in edge_agreement(some, some)] == [1, 1, 1]


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_against_the_chessboard_distance(tolerance: int) -> None:
    random = np.random.default_rng(tolerance)
    found, wanted = (random.random((3, 20, 24)) < share for share in (0.05, 0.03))
    result = edge_agreement(torch.from_numpy(found), torch.from_numpy(wanted), tolerance)
    swapped = edge_agreement(torch.from_numpy(wanted), torch.from_numpy(found), tolerance)
    for i in range(3):
        to_wanted = scipy.ndimage.distance_transform_cdt(~wanted[i], "chessboard")
        to_found = scipy.ndimage.distance_transform_cdt(~found[i], "chessboard")
        assert float(result.precision[i]) == pytest.approx((to_wanted[found[i]] <= tolerance).mean())
        assert float(result.recall[i]) == pytest.approx((to_found[wanted[i]] <= tolerance).mean())
    assert torch.equal(result.precision, swapped.recall) and torch.equal(result.f1, swapped.f1)
    # A picture's figures do not depend on the others.
    alone = edge_agreement(torch.from_numpy(found[1:2]), torch.from_numpy(wanted[1:2]), tolerance)
    assert torch.equal(alone.f1[0], result.f1[1])


def test_edges_of_a_moved_square() -> None:
    pictures = [Image.new("RGB", (24, 24), "white") for _ in range(3)]
    for picture, x in zip(pictures, (8, 9, 12), strict=True):
        picture.paste("black", (x, 8, x + 8, 16))
    edges = edges_of(torch.cat([to_tensor(p) for p in pictures]))
    assert edges.shape == (3, 24, 24) and edges.dtype == torch.bool
    first = edges[:1]
    assert float(edge_agreement(edges[1:2], first, 1).f1) == 1
    assert float(edge_agreement(edges[2:], first, 1).f1) < 0.8


def test_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="two sets of edges"):
        edge_agreement(torch.zeros(1, 3, 3, dtype=torch.bool), torch.zeros(1, 3, 4, dtype=torch.bool))
