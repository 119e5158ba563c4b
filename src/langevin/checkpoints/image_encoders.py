"""CLIP's image tower alone, for IP-Adapters: from a Hugging Face folder, of it or of a whole CLIP, or from one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from langevin.checkpoints.clip_files import read_image_tower, read_normalisation
from langevin.checkpoints.jsonfile import Fields
from langevin.checkpoints.loader import open_tensors
from langevin.checkpoints.places import identity
from langevin.checkpoints.shapes import UnknownArchitectureError, count, size
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.checkpoints.transfer import WORDS, fit, load_into
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.errors import CheckpointError
from langevin.model.image_prompt import ImageEncoder
from langevin.networks.clip import ClipImage, ClipImageConfig

_CONFIG = "config.json"
_OURS = ("vision_model.", "visual_projection.")
_TABLE = "vision_model.embeddings.position_ids"
"""0, 1, 2 ..., which older files hold beside the weights."""
_KNOWN: Mapping[int, int] = {1280: 16, 1664: 16}
"""Heads by the width, of the towers that IP-Adapters are published for: OpenCLIP's ViT-H and ViT-bigG. Both have the
exact gelu. Towers of other widths exist with either activation, which no shape tells."""


def load_image_encoder(
    path: Path, dtype: torch.dtype, device: torch.device | str, *, allow_pickle: bool = False
) -> ImageEncoder:
    """CLIP's image tower, strictly.

    path: a folder with config.json and weights, or a weight file. A file beside which there is no config.json must be
    ViT-H or ViT-bigG. Raises CheckpointError, in one line, where it is something else, incomplete or
    damaged.
    """
    half = dtype.itemsize == 2
    if path.is_dir():
        folder, file = path, open_weights(path, "model", variants(half=half, non_ema=False), allow_pickle=allow_pickle)
    else:
        folder, file = path.parent, open_tensors(path, allow_pickle=allow_pickle)
    names = [name for name in file.tensors if name.startswith(_OURS) and name != _TABLE]
    if not names:
        raise CheckpointError(f"{path}: no tensors of CLIP's image tower (vision_model.*); expected an image encoder")
    config = _config(folder, file) if (folder / _CONFIG).is_file() or path.is_dir() else _known(file)
    mean, deviation = read_normalisation(folder / "preprocessor_config.json")
    with torch.device("meta"):
        tower = ClipImage(config)
    part = fit(WORDS["image"], tower, file, identity(tower.state_dict()), names)
    load_into(tower, part, dtype, device)
    return ImageEncoder(tower, mean, deviation, tuple(map(Path, file.paths)))


def _config(folder: Path, file: TensorFile) -> ClipImageConfig:
    fields = Fields.of(folder / _CONFIG)
    whole = fields.take("model_type", None) == "clip"
    projection = fields.get("projection_dim", int, 512)
    if whole:
        fields = Fields(fields.get("vision_config", dict, {}), f"{folder / _CONFIG}: vision_config")
    return read_image_tower(fields, projection if "visual_projection.weight" in file.tensors else None)


def _known(file: TensorFile) -> ClipImageConfig:
    try:
        return _by_shape(file.tensors)
    except UnknownArchitectureError as error:
        raise CheckpointError(f"{file.label}: {error}; put its {_CONFIG} beside it") from None
    except ValueError as error:
        raise CheckpointError(f"{file.label}: an impossible architecture: {error}") from None


def _by_shape(tensors: Mapping[str, TensorInfo]) -> ClipImageConfig:
    width = size(tensors, "vision_model.embeddings.patch_embedding.weight", 0)
    if width not in _KNOWN:
        raise UnknownArchitectureError(
            f"heads and activation of an image tower of {width} channels cannot be told from its shapes"
        )
    patch = size(tensors, "vision_model.embeddings.patch_embedding.weight", 2)
    across = round((size(tensors, "vision_model.embeddings.position_embedding.weight", 0) - 1) ** 0.5)
    projected = "visual_projection.weight" in tensors
    return ClipImageConfig(
        image_size=across * patch,
        patch_size=patch,
        in_channels=size(tensors, "vision_model.embeddings.patch_embedding.weight", 1),
        width=width,
        layers=count(tensors, r"vision_model\.encoder\.layers\.(\d+)\..+"),
        heads=_KNOWN[width],
        mlp_width=size(tensors, "vision_model.encoder.layers.0.mlp.fc1.weight", 0),
        activation="gelu",
        projection=size(tensors, "visual_projection.weight", 0) if projected else None,
    )
