"""Finished baselines from their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from langevin.baselines import gan, imagegpt, modelfile, pixelcnn
from langevin.baselines.family import PictureModel
from langevin.baselines.gan_network import GanConfig, Generator
from langevin.baselines.imagegpt_network import ImageGpt, ImageGptConfig
from langevin.baselines.pixelcnn_network import PixelCnn, PixelCnnConfig
from langevin.errors import CheckpointError

_Parts = tuple[Callable[..., Any], Callable[[Any], nn.Module], Callable[[Any], PictureModel]]

KINDS: Mapping[str, _Parts] = {
    gan.KIND: (GanConfig, Generator, gan.TrainedGan),
    pixelcnn.KIND: (PixelCnnConfig, PixelCnn, pixelcnn.TrainedPixelCnn),
    imagegpt.KIND: (ImageGptConfig, ImageGpt, imagegpt.TrainedImageGpt),
}
"""For each kind of file: its configuration, its network, the model."""


def load_baseline(path: Path) -> PictureModel:
    """The model in a `model.safetensors` that the training of a baseline wrote, on the CPU.

    Raises CheckpointError where the file is damaged, of another kind, or does not fit its own configuration.
    """
    kind, fields, state = modelfile.read_model(path)
    if kind not in KINDS:
        raise CheckpointError(f"{path} is a {kind!r}: known are {', '.join(KINDS)}")
    make_config, make_network, make_model = KINDS[kind]
    try:
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        network = make_network(make_config(**fields))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its configuration is not valid: {error}") from None
    modelfile.fill(path, network, state)
    return make_model(network)
