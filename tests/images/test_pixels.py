"""Pictures of every mode to tensors and back."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from langevin.errors import DataError
from langevin.images.pixels import open_picture, to_pictures, to_rgb, to_tensor

W, H = 5, 3


def test_all_levels_survive_the_way_there_and_back() -> None:
    picture = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3), "RGB")
    tensor = to_tensor(picture)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    assert to_pictures(tensor)[0].tobytes() == picture.tobytes()


def test_values_are_rounded_and_clamped() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5 / 127.5, 1.0, 9.0, float("inf")])
    row = to_pictures(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))[0]
    assert list(row.getchannel(0).tobytes()) == [0, 0, 128, 128, 255, 255, 255]


def test_no_picture_is_made_of_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_pictures(torch.full((1, 3, 2, 2), float("nan")))


RAMP = np.arange(W * H).reshape(H, W)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray((RAMP * 17).astype(np.uint8), "L"), RAMP * 17),
        (
            Image.fromarray((RAMP % 2 * 255).astype(np.uint8), "L").convert("1", dither=Image.Dither.NONE),
            RAMP % 2 * 255,
        ),
        (Image.fromarray((RAMP * 4369).astype(np.uint16)), RAMP * 17),
        (Image.fromarray((RAMP * 4369).astype(np.int32), "I"), RAMP * 17),
        (Image.fromarray((RAMP / 15).astype(np.float32), "F"), RAMP * 17),
        (Image.fromarray((RAMP * 17).astype(np.float32), "F"), RAMP * 17),
        (Image.fromarray(np.full((H, W), np.nan, np.float32), "F"), RAMP * 0),
    ],
    ids=["L", "1", "I;16", "I", "F of 1", "F of 255", "F of NaN"],
)
def test_grey_of_every_depth_is_scaled_not_cut_off(picture: Image.Image, expected: np.ndarray) -> None:
    rgb = to_rgb(picture)
    assert rgb.mode == "RGB"
    for channel in range(3):
        assert np.abs(np.asarray(rgb)[..., channel].astype(int) - expected).max() <= 1


def test_transparency_shows_the_background() -> None:
    half = Image.new("RGBA", (W, H), (255, 0, 0, 128))
    half.putpixel((0, 0), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    rgb = to_rgb(half, background=(0, 0, 255))
    assert rgb.getpixel((0, 0)) == (0, 0, 255)
    assert rgb.getpixel((1, 0)) == (255, 0, 0)
    assert all(abs(a - b) <= 1 for a, b in zip(rgb.getpixel((2, 2)), (128, 0, 127), strict=True))  # type: ignore[arg-type]
    assert to_rgb(Image.new("LA", (W, H), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_palette_colour_shows_the_background() -> None:
    picture = Image.new("P", (W, H), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 1), 1)
    picture.info["transparency"] = 0
    rgb = to_rgb(picture)
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert rgb.getpixel((1, 1)) == (40, 50, 60)


def test_a_transparent_colour_of_an_rgb_picture_shows_the_background() -> None:
    picture = Image.new("RGB", (W, H), (1, 2, 3))
    picture.info["transparency"] = (1, 2, 3)
    assert to_rgb(picture).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    picture = Image.new("RGB", (W, H), (200, 100, 50))
    converted = picture.convert(mode) if mode != "LAB" else Image.new("LAB", (W, H), (128, 128, 128))
    rgb = to_rgb(converted)
    assert rgb.mode == "RGB" and rgb.size == (W, H)
    if mode != "LAB":
        assert all(abs(a - b) <= 3 for a, b in zip(rgb.getpixel((0, 0)), (200, 100, 50), strict=True))  # type: ignore[arg-type]


def test_cmyk_with_a_broken_profile_is_still_read() -> None:
    picture = Image.new("RGB", (W, H), (200, 100, 50)).convert("CMYK")
    picture.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # not of CMYK
    assert to_rgb(picture).size == (W, H)
    picture.info["icc_profile"] = b"nonsense"
    assert to_rgb(picture).size == (W, H)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(orientation: int, tmp_path: Path) -> None:
    # The corner that is to be at the top left in the end, in the stored picture, for each orientation.
    corner = {1: (0, 0), 2: (W - 1, 0), 3: (W - 1, H - 1), 4: (0, H - 1),
              5: (0, 0), 6: (0, H - 1), 7: (W - 1, H - 1), 8: (W - 1, 0)}[orientation]  # fmt: skip
    picture = Image.new("RGB", (W, H), (0, 0, 0))
    picture.putpixel(corner, (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    rgb = to_rgb(open_picture(tmp_path / "a.png"))
    assert rgb.size == ((W, H) if orientation < 5 else (H, W))
    assert rgb.getpixel((0, 0)) == (255, 255, 255)


def encoded(form: str, picture: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (W, H), (i * 100, 0, 0)) for i in range(3)]
    data = encoded("GIF", frames[0], save_all=True, append_images=frames[1:])
    assert to_rgb(open_picture(data)).getpixel((0, 0)) == (0, 0, 0)


def test_the_size_is_checked_before_decoding() -> None:
    with pytest.raises(DataError, match="100 x 100 pixels: at most 99"):
        open_picture(encoded("PNG", Image.new("L", (100, 100))), max_pixels=99)
    bomb = bytearray(encoded("PNG", Image.new("L", (1, 1))))
    bomb[16:24] = (65535).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match="too large to decode"):
        open_picture(bytes(bomb))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8), "RGB")
    data = encoded(form, noise)
    with pytest.raises(DataError, match="the picture"):
        open_picture(data[: len(data) // 2])


def test_what_is_no_picture_of_a_known_format_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"hello", encoded("PPM", Image.new("L", (3, 3)))):
        with pytest.raises(DataError, match="not a picture that is read here"):
            open_picture(data)
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="cannot be decoded"):
        open_picture(tmp_path)
