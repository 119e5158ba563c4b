"""Recipes: functions that return everything a training run is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from langevin.training.recipes.classifier_fashion import classifier_fashion
from langevin.training.recipes.ddpm_cifar import ddpm_cifar
from langevin.training.recipes.emoji import emoji
from langevin.training.recipes.emoji_128 import emoji_128
from langevin.training.recipes.emoji_edges import emoji_edges
from langevin.training.recipes.emoji_fast import emoji_fast
from langevin.training.recipes.fashion import ddpm_fashion, edm_fashion, iddpm_fashion
from langevin.training.recipes.latent_fashion import latent_fashion
from langevin.training.recipes.shapes import shapes
from langevin.training.recipes.shapes_cascade import shapes_cascade
from langevin.training.recipes.shapes_conditioned import shapes_depth, shapes_inpainting, shapes_semantic
from langevin.training.recipes.shapes_upscaler import shapes_upscaler
from langevin.training.recipes.v_shapes import v_shapes
from langevin.training.system import System

RECIPES: Mapping[str, Callable[[], System]] = {
    "emoji": emoji,
    "emoji-128": emoji_128,
    "emoji-edges": emoji_edges,
    "emoji-fast": emoji_fast,
    "shapes": shapes,
    "shapes-depth": shapes_depth,
    "shapes-semantic": shapes_semantic,
    "shapes-inpainting": shapes_inpainting,
    "shapes-upscaler": shapes_upscaler,
    "shapes-cascade": shapes_cascade,
    "latent-fashion-class": latent_fashion,
    "classifier-fashion": classifier_fashion,
    "ddpm-fashion": ddpm_fashion,
    "iddpm-fashion": iddpm_fashion,
    "edm-fashion": edm_fashion,
    "v-shapes": v_shapes,
    "ddpm-cifar": ddpm_cifar,
}
