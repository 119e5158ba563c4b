"""Recipes: functions that return everything a training run is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from langevin.training.recipes.ddpm_cifar import ddpm_cifar
from langevin.training.recipes.emoji import emoji
from langevin.training.recipes.fashion import ddpm_fashion, edm_fashion, iddpm_fashion
from langevin.training.recipes.v_shapes import v_shapes
from langevin.training.system import System

RECIPES: Mapping[str, Callable[[], System]] = {
    "emoji": emoji,
    "ddpm-fashion": ddpm_fashion,
    "iddpm-fashion": iddpm_fashion,
    "edm-fashion": edm_fashion,
    "v-shapes": v_shapes,
    "ddpm-cifar": ddpm_cifar,
}
