"""The families that are compared: a recipe for each, and how its finished file is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from langevin.baselines.diffusion import DiffusionPictures
from langevin.baselines.family import PictureModel
from langevin.baselines.loading import load_baseline
from langevin.baselines.recipes import RECIPES
from langevin.checkpoints.loader import load_bundle
from langevin.training.recipes import RECIPES as OTHER_RECIPES
from langevin.training.system import System


@dataclass(frozen=True, kw_only=True)
class Family:
    recipe: str
    make: Callable[[], System]
    open: Callable[[Path, int], PictureModel]
    """The model in a finished file; the number is that of the sampler's steps, for diffusion."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the time, for each stage; a single stage has it all."""


def _open_diffusion(path: Path, steps: int) -> PictureModel:
    return DiffusionPictures(load_bundle(path), steps=steps)


def _baseline(recipe: str) -> Family:
    return Family(recipe=recipe, make=RECIPES[recipe], open=lambda path, _: load_baseline(path))


FAMILIES: Mapping[str, Family] = {
    "diffusion": Family(recipe="ddpm-fashion", make=OTHER_RECIPES["ddpm-fashion"], open=_open_diffusion),
    "gan": _baseline("gan-fashion"),
    "pixelcnn": _baseline("pixelcnn-fashion"),
    "imagegpt": _baseline("imagegpt-fashion"),
    "latent": Family(
        recipe="latent-fashion",
        make=RECIPES["latent-fashion"],
        open=_open_diffusion,
        shares={"autoencoder": 0.35, "diffusion": 0.65},
    ),
}
