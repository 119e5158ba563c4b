"""What is outside the mask stays bit for bit, in every mode; what is inside becomes the new picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from langevin.errors import DataError
from langevin.images.pasting import MODES, extended, pasted, same_outside, stored
from langevin.images.pixels import to_rgb

FILES = tuple(mode for mode in MODES if mode not in ("I;16L", "I;16N"))


def random_picture(mode: str, width: int, height: int, generator: np.random.Generator) -> Image.Image:
    """Every number of the mode may occur: also NaN, also what no conversion from RGB gives."""
    if mode in ("I;16", "I;16B"):
        values = generator.integers(0, 2**16, (height, width)).astype("<u2" if mode == "I;16" else ">u2")
        return Image.frombytes(mode, (width, height), values.tobytes())
    if mode == "I":
        return Image.fromarray(generator.integers(-(2**31), 2**31, (height, width)).astype(np.int32))
    if mode == "F":
        values = generator.standard_normal((height, width)).astype(np.float32)
        values[0, 0] = np.nan
        return Image.fromarray(values)
    if mode == "1":
        return Image.fromarray(generator.integers(0, 2, (height, width)).astype(bool))
    shape = (height, width) if mode in ("L", "P") else (height, width, len(Image.new(mode, (1, 1)).getbands()))
    picture = Image.frombytes(mode, (width, height), generator.integers(0, 256, shape, dtype=np.uint8).tobytes())
    if mode == "P":
        picture.putpalette(generator.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return picture


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FILES), st.integers(1, 19), st.integers(1, 19), st.integers(0, 2**32 - 1))
def test_nothing_outside_changes(mode: str, width: int, height: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    picture = random_picture(mode, width, height, generator)
    painted = random_picture("RGB", width, height, generator)
    weight = generator.random((height, width)) * generator.integers(0, 2, (height, width))
    result = pasted(picture, painted, weight)
    assert same_outside(picture, result, weight > 0)
    raw = [np.frombuffer(np.ascontiguousarray(stored(p)).tobytes(), np.uint8) for p in (picture, result)]
    kept = np.repeat(weight.reshape(-1) == 0, len(raw[0]) // weight.size)
    assert (raw[0] == raw[1])[kept].all() and result.mode == mode


@pytest.mark.parametrize("mode", FILES)
def test_what_is_inside_is_the_new_picture_as_near_as_the_mode_comes(mode: str) -> None:
    generator = np.random.default_rng(0)
    picture = random_picture(mode, 16, 12, generator)
    if mode == "F":
        picture = Image.fromarray(np.float32(generator.random((12, 16))))
    painted = random_picture("RGB", 3, 2, generator).resize((16, 12), Image.Resampling.BICUBIC)
    result = pasted(picture, painted, np.ones((12, 16)))
    wanted = painted.convert("L") if mode in ("L", "LA", "F", "I", "I;16", "I;16B") else painted
    gap = np.abs(np.asarray(to_rgb(result), float) - np.asarray(wanted.convert("RGB"), float))
    if mode == "1":
        assert np.array_equal(stored(result), np.asarray(painted.convert("L")) >= 128)
    elif mode == "P":
        assert gap.mean() < 25  # of 256 colours drawn by chance
    else:
        assert gap.max() <= (12 if mode in ("HSV", "YCbCr") else 1), gap.max()
    if mode in ("LA", "RGBA"):
        assert (stored(result)[..., -1] == 255).all()


def test_indexed_pictures_get_opaque_colours_and_keep_their_palette() -> None:
    picture = Image.new("P", (4, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 250, 5, 5])
    picture.info["transparency"] = 0
    result = pasted(picture, Image.new("RGB", (4, 1), (255, 0, 0)), np.array([[1, 0, 1, 0]]))
    assert list(result.tobytes()) == [2, 0, 2, 0] and result.getpalette() == picture.getpalette()
    assert result.info["transparency"] == 0


@pytest.mark.parametrize(("mode", "key", "new"), [("RGB", (255, 255, 255), "white"), ("L", 255, "white")])
def test_no_new_pixel_has_the_colour_that_means_transparent(mode: str, key: object, new: str) -> None:
    picture = Image.new(mode, (2, 2))
    picture.info["transparency"] = key
    result = pasted(picture, Image.new("RGB", (2, 2), new), np.ones((2, 2)))
    assert result.convert("RGBA").getchannel("A").getextrema() == (255, 255)


def test_weights_blend() -> None:
    result = pasted(Image.new("RGB", (3, 1)), Image.new("RGB", (3, 1), (200,) * 3), np.array([[0, 0.25, 1]]))
    assert stored(result)[0, :, 0].tolist() == [0, 50, 200]


@pytest.mark.parametrize("mode", FILES)
def test_a_larger_picture_has_the_old_one_in_it(mode: str) -> None:
    picture = random_picture(mode, 5, 3, np.random.default_rng(0))
    for reflect in (False, True):
        larger = extended(picture, 2, 7, 0, 1, reflect=reflect)
        assert larger.size == (7, 11) and larger.mode == mode
        assert stored(larger)[7:10, 2:7].tobytes() == stored(picture).tobytes()
        assert stored(larger)[7, 1].tobytes() == stored(picture)[0, 0].tobytes()


def test_a_mode_that_nothing_can_be_brought_to_is_refused() -> None:
    with pytest.raises(DataError, match="mode LAB cannot be changed in part: convert it to RGB first"):
        pasted(Image.new("LAB", (2, 2)), Image.new("RGB", (2, 2)), np.ones((2, 2)))
