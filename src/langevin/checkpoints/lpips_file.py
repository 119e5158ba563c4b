"""LPIPS weights as they are published: VGG-16 in torchvision's file, the 1x1 heads in one of their own, or both in one.

torchvision names the convolutions `features.N`, the file of the whole metric `net.sliceK.N`; the heads are
`linK.model.1.weight` in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from langevin.checkpoints.loader import open_tensors
from langevin.checkpoints.places import Place
from langevin.checkpoints.tensorfile import Shards, TensorFile
from langevin.checkpoints.transfer import fit, load_into
from langevin.errors import CheckpointError
from langevin.networks.lpips import Lpips

_UNUSED = ("classifier.", "scaling_layer.", "lins.")
"""VGG's fully connected layers; the constants that the network has too; the heads under a second name."""


def load_lpips(paths: Sequence[Path], device: torch.device | str = "cpu", *, allow_pickle: bool = False) -> Lpips:
    """LPIPS in float32 from one file or from two, VGG-16 and heads in any order; frozen.

    Pickles (.pth) are read with `allow_pickle` only. Raises CheckpointError, in one line, where something is missing,
    of another shape, or too much, and where a head's weight is negative.
    """
    opened = [open_tensors(path, allow_pickle=allow_pickle) for path in paths]
    file: TensorFile = opened[0] if len(opened) == 1 else Shards(opened, " and ".join(map(str, paths)))
    network = Lpips()
    sliced = any(name.startswith("net.") for name in file.tensors)
    places = {name: Place(_place(network, name, sliced)) for name in network.state_dict()}
    present = [name for name in file.tensors if not name.startswith(_UNUSED)]
    part = fit("LPIPS", network, file, places, present)
    for name, place in places.items():
        if name.startswith("heads.") and bool((part.read(name) < 0).any()):
            raise CheckpointError(f"{file.label}: {place.name} has negative weights, which make no distance")
    load_into(network, part, torch.float32, device)
    return network.to(device)


def _place(network: Lpips, name: str, sliced: bool) -> str:
    kind, _, rest = name.partition(".")
    if kind == "heads":
        return f"lin{rest}.model.1.weight"
    if not sliced:
        return rest
    layer = int(rest.split(".")[1])
    block = next(k for k, last in enumerate(network.net.taps, 1) if layer <= last)
    return f"net.slice{block}.{rest.removeprefix('features.')}"
