"""IP-Adapter files: for one vector of a picture, for its states ("plus") and for faces ("full face")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from langevin.checkpoints.places import identity
from langevin.checkpoints.recognise import Kind, recognise
from langevin.checkpoints.shapes import UnknownArchitectureError, count, size
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.checkpoints.transfer import WORDS, Part, fit
from langevin.errors import CheckpointError
from langevin.networks.ip_adapter import HEAD_CHANNELS, IPAdapter, IPAdapterConfig

_XL_CONTEXT = 2048


@dataclass(frozen=True, eq=False)
class IPAdapterCheckpoint:
    """Where an IP-Adapter's tensors lie."""

    label: str
    config: IPAdapterConfig
    part: Part

    def network(self) -> IPAdapter:
        """On the meta device."""
        return _on_meta(self.config)


def open_ip_adapter(file: TensorFile) -> IPAdapterCheckpoint:
    """An IP-Adapter's file; its shapes tell the architecture. CheckpointError where it is something else, damaged, or
    of a kind that takes other things than pictures."""
    contents = recognise(file.tensors)
    if contents.kind is not Kind.IP_ADAPTER:
        raise CheckpointError(f"{file.label}: {contents.words}; expected an IP-Adapter")
    try:
        config = _config(file.tensors)
    except UnknownArchitectureError as error:
        raise CheckpointError(f"{file.label}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{file.label}: an impossible architecture: {error}") from None
    network = _on_meta(config)
    places = identity(network.state_dict())
    return IPAdapterCheckpoint(file.label, config, fit(WORDS["ip-adapter"], network, file, places, file.tensors))


def _config(tensors: Mapping[str, TensorInfo]) -> IPAdapterConfig:
    numbers = sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".to_k_ip.weight"))
    if numbers != list(range(1, 2 * len(numbers), 2)):
        raise UnknownArchitectureError(f"layers {numbers[:5]} where 1, 3, 5 ... are expected")
    layers = tuple(size(tensors, f"ip_adapter.{number}.to_k_ip.weight", 0) for number in numbers)
    context = size(tensors, "ip_adapter.1.to_k_ip.weight", 1)
    if context == _XL_CONTEXT:
        raise UnknownArchitectureError("an IP-Adapter for Stable Diffusion XL; expected one for 1.x / 2.x")
    if any(name.startswith("image_proj.perceiver_resampler.") for name in tensors) or (
        "image_proj.norm.weight" in tensors and "image_proj.proj.weight" not in tensors
    ):
        raise UnknownArchitectureError("an IP-Adapter for face recognition's vectors; expected one for pictures")
    if "image_proj.proj.weight" in tensors:
        tokens, rest = divmod(size(tensors, "image_proj.proj.weight", 0), context)
        if rest:
            raise UnknownArchitectureError(f"image_proj.proj.weight makes no whole tokens of {context} channels")
        given = size(tensors, "image_proj.proj.weight", 1)
        return IPAdapterConfig(image_channels=given, context_channels=context, tokens=tokens, layers=layers)
    if "image_proj.proj.3.weight" in tensors:
        given = size(tensors, "image_proj.proj.0.weight", 1)
        return IPAdapterConfig(kind="full", image_channels=given, context_channels=context, layers=layers)
    return IPAdapterConfig(
        kind="plus",
        image_channels=size(tensors, "image_proj.proj_in.weight", 1),
        context_channels=context,
        tokens=size(tensors, "image_proj.latents", 1),
        width=size(tensors, "image_proj.latents", 2),
        depth=count(tensors, r"image_proj\.layers\.(\d+)\..+"),
        heads=size(tensors, "image_proj.layers.0.0.to_q.weight", 0) // HEAD_CHANNELS,
        layers=layers,
    )


def _on_meta(config: IPAdapterConfig) -> IPAdapter:
    with torch.device("meta"):
        return IPAdapter(config)
