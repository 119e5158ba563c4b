"""The weights of the Frechet distance's Inception network, in the layout of their published PyTorch port."""

from __future__ import annotations

from pathlib import Path

import torch

from langevin.checkpoints.loader import open_tensors
from langevin.checkpoints.places import identity
from langevin.checkpoints.transfer import fit, load_into
from langevin.networks.inception import Inception

_COUNTERS = ".num_batches_tracked"
"""Of batch normalisation in training; without meaning here."""


def load_inception(path: Path, device: torch.device | str = "cpu", *, allow_pickle: bool = False) -> Inception:
    """The network in float32 from a `pt_inception-2015-12-05` state dict, every name and shape checked.

    path: a .safetensors file, or, with `allow_pickle`, the .pth as it is published. Raises CheckpointError, in one
    line, for anything else, the Inception weights of other libraries included: these have 1000 logits.
    """
    file = open_tensors(path, allow_pickle=allow_pickle)
    with torch.device("meta"):
        network = Inception()
    present = [name for name in file.tensors if not name.endswith(_COUNTERS)]
    part = fit("Inception network", network, file, identity(network.state_dict()), present)
    load_into(network, part, torch.float32, device)
    return network
