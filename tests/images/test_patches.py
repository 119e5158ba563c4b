from __future__ import annotations

import numpy as np
import pytest

from langevin.images.patches import label_patches


def mask(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def flooded(ink: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """The same by the plainest means, in the order of the first pixels."""
    left = {(int(r), int(c)) for r, c in zip(*np.nonzero(ink), strict=True)}
    patches = []
    while left:
        border = [min(left)]
        patch = set(border)
        left -= patch
        while border:
            r, c = border.pop()
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            patch |= near
            border += near
        patches.append(frozenset(patch))
    return patches


def test_corners_join_and_arms_that_meet_below_are_one_patch() -> None:
    found = label_patches(
        mask(
            "#.#..#",
            "#.#.#.",
            "###...",
            "......",
            "##..##",
        )
    )
    assert found.max() == 4
    assert found[0].tolist() == [1, 0, 1, 0, 0, 2] and found[2, 1] == 1 and found[1, 4] == 2
    assert found[4].tolist() == [3, 3, 0, 0, 4, 4]


@pytest.mark.parametrize("share", [0.2, 0.45, 0.6])
def test_as_flooding_finds_them(share: float) -> None:
    ink = np.random.default_rng(0).random((24, 31)) < share
    found = label_patches(ink)
    patches = [np.nonzero(found == i) for i in range(1, found.max() + 1)]
    assert [frozenset(zip(*map(np.ndarray.tolist, patch), strict=True)) for patch in patches] == flooded(ink)
    assert np.array_equal(found > 0, ink)


def test_nothing_and_everything() -> None:
    assert label_patches(np.zeros((3, 4), dtype=bool)).max() == 0
    assert (label_patches(np.ones((3, 4), dtype=bool)) == 1).all()
