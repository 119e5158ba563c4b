"""Pictures of any kind to tensors in [-1, 1] and back: the only place that knows pixel formats."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from langevin.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What is decoded. Pillow knows some forty formats; each further one is more code that reads foreign bytes."""

MAX_PIXELS = 64 * 2**20


def to_tensor(picture: Image.Image) -> Tensor:
    """float32 1 3 H W in [-1, 1] of a picture of any mode (see `to_rgb`): 0 is -1, 255 is 1."""
    pixels = torch.from_numpy(np.array(to_rgb(picture)))  # H W 3
    return (pixels.permute(2, 0, 1).float() / 127.5 - 1).unsqueeze(0)


def to_pictures(images: Tensor) -> list[Image.Image]:
    """8-bit RGB pictures of `images`, B 3 H W: [-1, 1] to 0 ... 255, rounded to the nearest, clamped.

    Raises ValueError for NaN: a picture is not made of it.
    """
    if bool(torch.isnan(images).any()):
        raise ValueError("the image tensor holds NaN")
    pixels = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(), "RGB") for image in pixels]


def open_picture(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a picture file or its bytes, whole; the first frame of an animation.

    The size is checked from the header before anything is decoded. Raises DataError for a file that is missing,
    of another format, truncated, or of more than `max_pixels` pixels.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source), formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                raise DataError(f"{name} has {width} x {height} pixels: at most {max_pixels} are read")
            picture.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{name} is too large to decode: at most {max_pixels} pixels are read") from None
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not a picture that is read here: give {', '.join(FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{name} cannot be decoded: {error}") from None
    return picture


def to_rgb(picture: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """8-bit RGB of a picture of any mode.

    The orientation that EXIF states is applied first. Transparent parts show `background`. 16-bit, 32-bit and float
    grey values are scaled (I;16 and I from 0 ... 65535, F from 0 ... 1, or 0 ... 255 where it exceeds 1), not cut
    off. CMYK goes through its colour profile where it has one.
    """
    picture = ImageOps.exif_transpose(picture)
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_grey8(np.asarray(picture), mode)).convert("RGB")
    if mode == "CMYK" and "icc_profile" in picture.info:
        profile = io.BytesIO(picture.info["icc_profile"])
        try:
            converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a broken profile: the plain conversion below is what is left
        if converted is not None:
            return converted
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        under = Image.new("RGBA", layer.size, (*background, 255))
        return Image.alpha_composite(under, layer).convert("RGB")
    return picture.convert("RGB")


def _grey8(values: np.ndarray, mode: str) -> np.ndarray:
    grey = values.astype(np.float64)
    if mode == "F":
        grey = np.nan_to_num(grey)
        grey = grey * 255 if grey.max(initial=0) <= 1 else grey
    else:
        grey = grey * (255 / 65535)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
