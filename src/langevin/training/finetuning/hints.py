"""The hints of a data set's pictures: made of them once, before training, or read from a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from langevin.errors import RequestError
from langevin.images.hints import HINTS
from langevin.images.pixels import to_pictures
from langevin.training.caching import CacheConfig, Shard, cached
from langevin.training.data import PictureSet
from langevin.training.data.fitting import Fit
from langevin.training.data.maps import hint_pictures
from langevin.version import __version__


def check_hint(hint: str) -> None:
    """RequestError unless it names a maker or a folder."""
    if hint not in HINTS and not Path(hint).is_dir():
        raise RequestError(
            f"controlnet.hint {hint!r} is neither a folder nor one of {', '.join(HINTS)}: give one of them"
        )


def read_hints(hint: str, data: PictureSet, fit: Fit, config: CacheConfig, run: Path) -> PictureSet:
    """A hint for each picture, of its size, in the same order and mirrored where it is.

    hint: the name of a maker, whose work is kept where encoded pictures are; or a folder, read anew each time.
    DataError where the folder lacks one or it cannot be read.
    """
    if hint in HINTS:
        folder = run / "cache" if config.folder is None else Path(config.folder)
        parts: Sequence[Tensor] = [_made(hint, pictures, folder) for pictures in data.parts]
    else:
        parts = hint_pictures(data, Path(hint), fit)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.numpy().tobytes())
    return PictureSet(parts, data.records, digest.hexdigest(), bucket=data.bucket, flip=data.flip, keys=data.keys)


def _made(hint: str, pictures: Tensor, folder: Path) -> Tensor:
    """uint8 N 3 H W, of as many pictures."""
    pixels = hashlib.sha256(pictures.numpy().tobytes()).hexdigest()
    key = hashlib.sha256(f"hints {__version__} {hint} {tuple(pictures.shape)} {pixels}".encode()).hexdigest()

    def work(some: Tensor) -> Shard:
        made = [np.asarray(HINTS[hint](picture)) for picture in to_pictures(some.float() / 127.5 - 1)]
        return {"hints": torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)}

    return cached(folder, key, len(pictures), lambda start, end: pictures[start:end], work)["hints"]
