"""Depth of a picture by a model of the `transformers` library, from a folder on this machine.

The library is imported when a map is made, and only then: it is the extra `text`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from langevin.checkpoints.jsonfile import Fields
from langevin.checkpoints.tensorfile import in_words
from langevin.errors import CheckpointError, DataError
from langevin.images.pixels import to_tensor
from langevin.model.text_transformers import quietly

_SIDE = 384
"""Pixels of the square that the picture is brought to, where the model's preprocessor does not say another."""
_CELL = 32
"""Sides are multiples of it."""


@torch.no_grad()
def estimate_depth(picture: Image.Image, folder: str | os.PathLike[str], *, device: str = "cpu") -> Image.Image:
    """The depth map of a picture of any mode: its size, 16-bit grey (mode I;16), the nearest 65535, the farthest 0.

    folder: a depth estimator as the library saves it (config.json, model.safetensors, preprocessor_config.json) whose
    answer is larger where it is nearer: DPT and MiDaS (Ranftl et al. 2021), Depth Anything. The picture is stretched
    bicubically to the square of the preprocessor, as diffusers does. Nothing is downloaded, and no code of the folder
    is run. Raises CheckpointError where it holds no such model or the library is not installed, DataError where the map
    is the same everywhere.
    """
    folder = Path(folder).expanduser()
    network = _open(folder, device)
    width, height, mean, deviation = _preprocessing(folder)
    pixels = (to_tensor(picture) + 1) / 2  # 1 3 H W in [0, 1]
    small = F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    answer: Any = network(((small - mean) / deviation).to(device))
    near: Tensor = answer.predicted_depth.float().cpu()[:, None]  # 1 1 h w
    near = F.interpolate(near, pixels.shape[-2:], mode="bicubic", align_corners=False)[0, 0]
    low, high = near.min(), near.max()
    if not bool(torch.isfinite(near).all()) or bool(low == high):
        raise DataError(f"{folder} sees no depth in the picture: its answer is the same everywhere, or not finite")
    values = ((near - low) / (high - low) * 65535).round().numpy().astype(np.uint16)
    return Image.fromarray(values)


def _open(folder: Path, device: str) -> Any:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no depth model: give a folder of the transformers library's")
    try:
        import transformers
    except ImportError:
        raise CheckpointError("a depth model needs the transformers library: pip install 'langevin[text]'") from None
    try:
        with quietly(transformers):
            network: Any
            network, loaded = transformers.AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (ValueError, OSError, KeyError) as error:
        reason = (str(error).splitlines() or ["?"])[0][:160]
        raise CheckpointError(f"{folder} cannot be read as a depth model: {reason}") from None
    if missing := sorted(loaded["missing_keys"]):  # the library would draw them at random
        raise CheckpointError(f"{folder}: {len(missing)} weights of the depth model are missing ({in_words(missing)})")
    return network.to(device).eval().requires_grad_(False)


def _preprocessing(folder: Path) -> tuple[int, int, Tensor, Tensor]:
    """Width, height, mean and deviation that the model wants its pixels with."""
    path = folder / "preprocessor_config.json"
    fields = Fields.of(path) if path.is_file() else Fields({}, str(path))
    size = fields.take("size", {})
    size = {"height": size, "width": size} if isinstance(size, int) else size
    sides = [size.get(name, _SIDE) if isinstance(size, dict) else _SIDE for name in ("width", "height")]
    if not all(isinstance(side, int) and 0 < side <= 64 * _CELL for side in sides):
        raise fields.error("size", f"{size} is not a width and a height")
    mean, deviation = (fields.take(name, [0.5] * 3) for name in ("image_mean", "image_std"))
    try:
        numbers = [torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, deviation)]
    except (TypeError, ValueError, RuntimeError):
        raise fields.error("image_mean", "expected three numbers, as for image_std") from None
    return sides[0], sides[1], numbers[0], numbers[1]
