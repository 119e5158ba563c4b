"""Masks from files, alpha, boxes and polygons; grown, feathered, cropped to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from langevin.errors import RequestError
from langevin.images.masks import (
    around,
    feathered,
    grown,
    mask_of_alpha,
    mask_of_box,
    mask_of_picture,
    mask_of_polygon,
)


def test_drawn_masks_are_read_by_their_grey() -> None:
    assert mask_of_picture(Image.new("RGB", (2, 1), (128,) * 3)).tolist() == [[128, 128]]
    assert mask_of_picture(Image.new("1", (2, 1), 1)).tolist() == [[255, 255]]
    strokes = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    strokes.putpixel((1, 0), (255, 255, 255, 255))
    assert mask_of_picture(strokes).tolist() == [[0, 255]]


def test_transparent_parts() -> None:
    picture = Image.new("LA", (2, 1), (9, 255))
    picture.putpixel((1, 0), (9, 55))
    assert mask_of_alpha(picture).tolist() == [[0, 200]]
    with pytest.raises(RequestError, match=r"no transparent parts \(mode RGB\)"):
        mask_of_alpha(Image.new("RGB", (2, 1)))


def test_boxes_and_polygons() -> None:
    assert np.argwhere(mask_of_box(5, 4, (1, 2, 3, 9))).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert np.array_equal(mask_of_polygon(5, 4, (1, 1, 3, 1, 3, 2, 1, 2)), mask_of_box(5, 4, (1, 1, 4, 3)))
    with pytest.raises(RequestError, match="box 3,0,3,2 is empty"):
        mask_of_box(5, 4, (3, 0, 3, 2))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_growing_and_feathering_are_scipys(width: int, height: int, pixels: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    window = 2 * pixels + 1
    assert np.array_equal(grown(mask, pixels), ndimage.maximum_filter(mask, window, mode="nearest"))
    assert np.array_equal(grown(mask, -pixels), ndimage.minimum_filter(mask, window, mode="nearest"))
    inside = mask > 80
    weight = feathered(inside, pixels)
    if inside.all():
        assert (weight == 1).all()
    else:
        depth = ndimage.distance_transform_cdt(inside, "chessboard")
        np.testing.assert_allclose(weight, np.minimum(depth, pixels + 1) / (pixels + 1))


def test_the_part_around_a_mask_has_the_proportions_where_the_picture_allows() -> None:
    mask = mask_of_box(100, 60, (40, 20, 50, 24))
    assert around(mask, 3, 1.0) == (37, 14, 53, 30)
    assert around(mask, 500, 1.0) == (0, 0, 100, 60)
    left, top, right, bottom = around(mask_of_box(100, 60, (0, 0, 4, 30)), 0, 2.0)
    assert (left, top, right, bottom) == (0, 0, 60, 30)
