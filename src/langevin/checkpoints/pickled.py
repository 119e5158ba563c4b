"""The one place that unpickles: old PyTorch weight files (.ckpt, .pt, .pth, .bin), on an explicit word only.

A pickle is a program. torch's `weights_only` unpickler runs only a fixed list of instructions for tensors and plain
containers; everything else in a file stops it. Two things are added to it, neither of which runs anything of the file:

- torch older than 2.10 is refused: its restricted unpickler could be broken out of (CVE-2025-32434, CVE-2026-24747).
- Training programs leave objects of their own beside the weights (callbacks, numpy numbers, configurations). Names from
  the modules in `_TRAINING_LEFTOVERS` become instances of an empty class that takes any arguments and keeps none. Any
  other name makes the file refused, and the message says which name it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.checkpoints.foreign import first_bytes, foreign, is_pickle, is_zip
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo, dtype_name, in_words
from langevin.errors import CheckpointError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_LEAST_TORCH = (2, 10)
_TRAINING_LEFTOVERS = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "torchmetrics",
    "omegaconf",
    "numpy",
    "ldm",
    "cldm",
)
"""Packages whose classes are found in the published Stable Diffusion and ControlNet files, beside the weights."""

_LEVELS = ("image_proj", "ip_adapter")
"""The dictionaries that an IP-Adapter's file consists of: each tensor's name in one file, before its own."""

_LEGACY_NAMES = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
"""What is stubbed in files of the format before torch 1.6, which cannot be asked in advance what they name."""


class PickledFile(TensorFile):
    """The tensors of a pickled weight file, memory-mapped where its format allows.

    Takes what lies under "state_dict" if there is such a level; the two levels of an IP-Adapter's file become one.
    Raises CheckpointError without `allow_pickle`, for an unsafe torch, and for a file that is damaged, foreign, or
    names something that has no place in a weight file.
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_pickle: bool) -> None:
        self.path = Path(path)
        head = first_bytes(self.path)
        if not (is_zip(head) or is_pickle(head)):
            found = foreign(head) or f"neither a zip archive nor a pickle (first bytes {head[:8].hex(' ')})"
            raise CheckpointError(f"{self.path}: {found}; expected a PyTorch weight file")
        if not allow_pickle:
            raise CheckpointError(
                f"{self.path}: a pickle, a format that can carry programs; use a .safetensors file, or, if you trust "
                "its source, pass allow_pickle=True (--allow-pickle)"
            )
        require_safe_torch(torch.__version__)
        data = _load(self.path, is_zip(head))
        self.global_step = _step(data)
        self._values = _tensors(data, self.path)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(dtype_name(value.dtype), tuple(value.shape)) for name, value in self._values.items()
        }
        self.metadata: Mapping[str, str] = {}

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def paths(self) -> Sequence[Path]:
        return [self.path]

    def read(self, name: str) -> Tensor:
        return self._values[name].detach()


def require_safe_torch(version: str) -> None:
    """CheckpointError for a torch whose restricted unpickler has known holes."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < _LEAST_TORCH:
        raise CheckpointError(f"torch {version} unpickles unsafely; 2.10 or newer is needed to read .ckpt files")


class _Leftover:
    """Stands for an object of a training program: takes anything, keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Leftover:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _load(path: Path, zipped: bool) -> Any:
    try:
        if zipped:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            strange = sorted(n for n in named if n.split(".")[0] not in _TRAINING_LEFTOVERS)
            if strange:
                raise CheckpointError(
                    f"{path}: refused: it would run or build {in_words(map(repr, strange))}, "
                    "which no weight file needs; do not use it"
                )
        else:
            named = list(_LEGACY_NAMES)
        # A class of its own for each name: the unpickler looks them up by identity.
        stubs: list[Any] = [(type("_Leftover", (_Leftover,), {}), name) for name in named]
        with torch.serialization.safe_globals(stubs):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged archive makes the reader do
        text = (str(error) or type(error).__name__).splitlines()[0]
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: refused: it would run or build '{found[1]}', which no weight file needs; do not use it"
            ) from None
        raise CheckpointError(f"{path}: a truncated or damaged PyTorch file: {text[:160]}; download it again") from None


def _step(data: Any) -> int | None:
    step = data.get("global_step") if isinstance(data, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _tensors(data: Any, path: Path) -> dict[str, Tensor]:
    state = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: a pickled {type(data).__name__}; expected a dictionary of tensors")
    if all(isinstance(state.get(level), dict) for level in _LEVELS):
        state = {f"{level}.{name}": value for level in _LEVELS for name, value in state[level].items()}
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and type(value) is Tensor}
    tensors |= {
        name: value.data
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, torch.nn.Parameter)
    }
    if not tensors:
        found = in_words(str(k)[:40] for k in state) or "nothing"
        raise CheckpointError(f"{path}: no tensors in it (it holds {found}); expected a dictionary of tensors")
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise CheckpointError(f"{path}: tensor {name} is sparse, quantised or has no data; expected plain tensors")
    return {name: tensors[name] for name in state if name in tensors}
