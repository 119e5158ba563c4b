"""The pictures of a class that a model makes of itself, so that fine-tuning does not forget the class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from langevin.errors import DataError, RequestError
from langevin.images.png import read_png, write_png
from langevin.model.bundle import ModelBundle
from langevin.tasks.from_text import text_to_image
from langevin.tasks.manifest import parameters
from langevin.tasks.request import GenerateRequest
from langevin.tasks.runner import run
from langevin.training.data import PictureSet


class PriorOptions(Protocol):
    """What the class pictures are made by."""

    @property
    def class_prompt(self) -> str: ...
    @property
    def class_pictures(self) -> int: ...
    @property
    def class_seed(self) -> int: ...
    @property
    def class_steps(self) -> int: ...
    @property
    def class_guidance(self) -> float: ...


def make_prior(
    model: Callable[[], ModelBundle], folder: Path, options: PriorOptions, size: int
) -> Generator[tuple[str, int, int]]:
    """Make the pictures that are not there yet, each of its own seed, as PNG files with their manifests.

    Yields (what, pictures done, of how many). The model is loaded only if something is left to do. RequestError where a
    picture in the folder was made by other options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle: ModelBundle | None = None
    for i in range(options.class_pictures):
        path = _path(folder, i)
        if path.exists():
            _check(path, _request(options, i, size))
        else:
            bundle = model() if bundle is None else bundle
            running = run(text_to_image(bundle, _request(options, i, size)))
            picture = running.finish().images[0]
            manifest = running.manifest(0)
            write_png(path, picture, manifest, parameters(manifest))
        yield "class pictures", i + 1, options.class_pictures


def read_prior(folder: Path, options: PriorOptions) -> PictureSet:
    """The pictures with the class prompt as their caption. DataError where one is missing or cannot be read."""
    pictures: list[Tensor] = []
    for i in range(options.class_pictures):
        picture, _ = read_png(_path(folder, i))
        pictures.append(torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1))
    together = torch.stack(pictures)
    digest = hashlib.sha256(together.numpy().tobytes()).hexdigest()
    return PictureSet(together, [{"caption": options.class_prompt}] * len(pictures), digest)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.png"


def _request(options: PriorOptions, index: int, size: int) -> GenerateRequest:
    return GenerateRequest(
        prompt=options.class_prompt,
        weighting="none",  # as training reads it: brackets are text
        seed=options.class_seed + index,
        steps=options.class_steps,
        guidance=options.class_guidance,
        width=size,
        height=size,
    )


def _check(path: Path, request: GenerateRequest) -> None:
    try:
        made = read_png(path)[1]["request"]
        same = all(made[name] == getattr(request, name) for name in request.model_fields_set)
    except (KeyError, TypeError):
        raise DataError(f"{path} was not made for this run: remove it, and it is made again") from None
    if not same:
        raise RequestError(
            f"{path} was made with another prompt, seed, size, number of steps or guidance: give the same options, or "
            f"remove {path.parent} to have the class pictures made again"
        )
