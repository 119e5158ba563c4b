"""Recipes: functions that return everything a training run is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from langevin.training.recipes.classifier_fashion import classifier_fashion
from langevin.training.recipes.emoji import emoji
from langevin.training.system import System

RECIPES: Mapping[str, Callable[[], System]] = {
    "emoji": emoji,
    "classifier-fashion": classifier_fashion,
}
