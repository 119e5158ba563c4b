"""Bringing new pixels into a picture of any mode without touching the others."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from langevin.errors import DataError
from langevin.images.pixels import to_rgb

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes that a PNG file holds as they are."""

_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", *_GREY16)
"""Modes that new pixels are brought to."""


def check_mode(picture: Image.Image) -> None:
    """DataError where new pixels cannot be brought to the picture's mode."""
    if picture.mode not in MODES:
        raise DataError(f"a picture of mode {picture.mode} cannot be changed in part: convert it to RGB first")


def pasted(picture: Image.Image, painted: Image.Image, weight: np.ndarray) -> Image.Image:
    """`picture` with the pixels of `painted` (RGB, of the same size) where `weight` (float H W in [0, 1]) is above 0.

    Weights below 1 blend, in 8-bit RGB. The result has the picture's mode, palette and colour profile, and where the
    weight is 0 its very pixels. New pixels are opaque; indexed pictures get the nearest of their opaque colours; those
    of 16 and 32 bits get 256 levels, scaled as `to_rgb` does. Raises DataError as `check_mode` does.
    """
    check_mode(picture)
    inside = weight > 0
    if not inside.any():
        return picture.copy()
    old = stored(picture)
    w = weight[..., None]
    under, over = (np.asarray(p, dtype=np.float64) for p in (to_rgb(picture), painted))
    mixed = Image.fromarray(np.rint(under + w * (over - under)).astype(np.uint8), "RGB")
    new = _in_mode(mixed, picture, old, weight)
    changed = old.copy()
    changed[inside] = _visible(new, picture)[inside]
    result = filled(picture, changed)
    if not same_outside(picture, result, inside):
        raise RuntimeError(f"pixels outside the mask changed (mode {picture.mode}): a defect of langevin")
    return result


def same_outside(picture: Image.Image, result: Image.Image, inside: np.ndarray) -> bool:
    """Whether two pictures are of one kind and equal, bit for bit, where `inside` (bool H W) is False."""
    if (picture.mode, picture.size) != (result.mode, result.size):
        return False
    if picture.mode == "P" and picture.getpalette("RGBA") != result.getpalette("RGBA"):
        return False
    return stored(picture)[~inside].tobytes() == stored(result)[~inside].tobytes()


def extended(picture: Image.Image, left: int, top: int, right: int, bottom: int, *, reflect: bool) -> Image.Image:
    """A larger picture of the same mode with the old one in it, its edges extended outwards, or reflected."""
    check_mode(picture)
    values = stored(picture)
    margins = [(top, bottom), (left, right), (0, 0)][: values.ndim]
    return filled(picture, np.pad(values, margins, mode="symmetric" if reflect else "edge"))


def stored(picture: Image.Image) -> np.ndarray:
    """The numbers that a picture is made of, H W or H W C: indices where it has a palette."""
    return np.array(picture)


def filled(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """A picture as `picture` - mode, palette, profile - of other numbers, H W or H W C as `stored` gives them."""
    result = Image.new(picture.mode, (values.shape[1], values.shape[0]))
    if picture.palette is not None:
        result.putpalette(picture.getpalette(picture.palette.mode) or [], picture.palette.mode)
    data = np.packbits(values, axis=1) if picture.mode == "1" else np.ascontiguousarray(values)
    result.frombytes(data.tobytes())
    result.info = dict(picture.info)
    return result


def _in_mode(rgb: Image.Image, picture: Image.Image, old: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The numbers of an RGB picture in the mode of `picture`; those at weight 0 have no meaning."""
    grey = rgb.convert("L")
    match picture.mode:
        case "1":
            return np.asarray(grey) >= 128
        case "LA" | "RGBA":
            colours = np.asarray(rgb.convert(picture.mode[:-1])).reshape(*weight.shape, -1)
            alpha = old[..., -1] + weight * (255.0 - old[..., -1])
            return np.dstack([colours, np.rint(alpha).astype(np.uint8)])
        case "P":
            return _nearest(np.asarray(rgb), picture, weight > 0)
        case "CMYK":
            return np.asarray(_cmyk(rgb, picture))
        case "F":
            finite = old[np.isfinite(old)]
            return np.asarray(grey, np.float32) / (255 if finite.max(initial=0) <= 1 else 1)
        case "I" | "I;16" | "I;16L" | "I;16B" | "I;16N":
            return (np.asarray(grey, np.int64) * 257).astype(old.dtype)
        case _:
            return np.asarray(rgb.convert(picture.mode))


def _nearest(rgb: np.ndarray, picture: Image.Image, inside: np.ndarray) -> np.ndarray:
    """Of each pixel the index of the palette's nearest opaque colour."""
    palette = np.array(picture.getpalette("RGBA"), np.int64).reshape(-1, 4)
    alpha = palette[:, 3].copy()
    match picture.info.get("transparency"):
        case int(index) if index < len(alpha):
            alpha[index] = 0
        case bytes(values):
            alpha[: len(values)] = np.frombuffer(values, np.uint8)[: len(alpha)]
    choice = np.flatnonzero(alpha == 255) if (alpha == 255).any() else np.arange(len(palette))
    colours, back = np.unique(rgb[inside], axis=0, return_inverse=True)
    found = np.zeros(len(colours), np.uint8)
    for start in range(0, len(colours), 4096):
        part = colours[start : start + 4096].astype(np.int64)
        found[start : start + 4096] = choice[((part[:, None] - palette[choice, :3]) ** 2).sum(-1).argmin(1)]
    result = np.zeros(inside.shape, np.uint8)
    result[inside] = found[back.reshape(-1)]
    return result


def _cmyk(rgb: Image.Image, picture: Image.Image) -> Image.Image:
    """By the picture's own profile, as `to_rgb` reads it, or plainly."""
    if "icc_profile" in picture.info:
        profile = io.BytesIO(picture.info["icc_profile"])
        try:
            made = ImageCms.profileToProfile(rgb, ImageCms.createProfile("sRGB"), profile, outputMode="CMYK")
        except (ImageCms.PyCMSError, OSError):
            made = None  # a broken profile, which was not used for reading either
        if made is not None:
            return made
    return rgb.convert("CMYK")


def _visible(new: np.ndarray, picture: Image.Image) -> np.ndarray:
    """New numbers of which none is the one colour that the picture declares transparent: that is changed by a level."""
    key = picture.info.get("transparency")
    if key is None or picture.mode not in ("L", "RGB", *_GREY16):
        return new
    new = new.copy()
    same = (new == np.array(key)).all(-1) if new.ndim == 3 else new == key
    last = new[..., -1] if new.ndim == 3 else new
    last[same] ^= 1
    return new
