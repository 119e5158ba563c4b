"""PNG files with text in them: what made the picture travels with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langevin.checkpoints.atomic import atomic_write
from langevin.errors import DataError
from langevin.images.pixels import open_picture

MANIFEST = "langevin"
"""Name of the text chunk that holds the manifest as JSON."""
PARAMETERS = "parameters"
"""Name of the text chunk that other programs read."""

_LONGEST = 4 * 2**20


def pixels_sha256(picture: Image.Image) -> str:
    """SHA-256 over mode, size and pixels: equal if and only if the pictures are (not the files, nor their text)."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height}\n".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def write_png(
    path: str | os.PathLike[str],
    picture: Image.Image,
    manifest: Mapping[str, Any] | None = None,
    parameters: str | None = None,
    *,
    overwrite: bool = True,
) -> None:
    """Writes a picture, whole or not at all, with its manifest and parameters as text chunks.

    The manifest is pure ASCII (other letters as JSON escapes). Raises FileExistsError where `overwrite` is False and
    the path is taken.
    """
    info = PngInfo()
    if parameters is not None:
        info.add_text(PARAMETERS, parameters)
    if manifest is not None:
        info.add_text(MANIFEST, json.dumps(manifest, allow_nan=False))
    with atomic_write(path, overwrite=overwrite) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def read_png(path: str | os.PathLike[str]) -> tuple[Image.Image, dict[str, Any]]:
    """A picture and its manifest. Raises DataError where there is none, or it is not one of ours."""
    picture = open_picture(path)
    text = getattr(picture, "text", {}).get(MANIFEST)
    if not isinstance(text, str):
        raise DataError(f"{path} has no manifest: only PNG files that langevin wrote say how they were made")
    if len(text) > _LONGEST:
        raise DataError(f"{path}: its manifest has {len(text)} characters: at most {_LONGEST} are read")
    try:
        manifest = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its manifest is not valid JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise DataError(f"{path}: its manifest has another format; this version reads format 1")
    return picture, manifest


def free_name(path: Path) -> Path:
    """`path`, or where it is taken the first of `name-2.png`, `name-3.png` ... that is free."""
    number, candidate = 1, path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
