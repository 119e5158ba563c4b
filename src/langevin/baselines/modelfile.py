"""The finished model of a baseline: averaged weights and its configuration in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import TensorInfo, dtype_name
from langevin.errors import CheckpointError

CONFIG_KEY = "langevin.baseline"
"""Name of the metadata: JSON with `kind` and the fields of that kind's configuration."""


def write_model(path: Path, kind: str, config: Mapping[str, Any], network: nn.Module) -> None:
    """Float32 weights with the configuration's fields as metadata; equal input gives equal bytes."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    infos = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in state.items()}
    text = json.dumps({"kind": kind, **config}, sort_keys=True)
    write_safetensors(path, infos, state.__getitem__, metadata=[(CONFIG_KEY, text)], overwrite=True)


def read_model(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Kind, configuration and weights. CheckpointError where the file is damaged or no baseline's."""
    file = SafetensorsFile(path)
    try:
        config = json.loads(file.metadata[CONFIG_KEY])
        kind = config.pop("kind")
    except (KeyError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path} is not a GAN, PixelCNN or ImageGPT of ours: its metadata has no valid {CONFIG_KEY}"
        ) from None
    return kind, config, {name: file.read(name).clone() for name in file.tensors}


def fill(path: Path, network: nn.Module, state: dict[str, Tensor]) -> None:
    """Give `network` the weights of a file; CheckpointError unless they are just the ones it has."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # torch lists every key and shape
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path}: the weights are not those of its configuration: {first}") from None
    network.requires_grad_(False).eval()


@torch.no_grad()
def parameter_count(network: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in network.parameters())
