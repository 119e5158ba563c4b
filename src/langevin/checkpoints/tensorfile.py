"""A file of named tensors, whatever its format. Nothing here or in the readers' headers needs torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from langevin.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPE_BITS = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32, "BF16": 16, "F16": 16, "U16": 16,
    "I16": 16, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
"""Every element type of the safetensors format. Its library writes tensors in this order, then by name."""

_TORCH_NAMES = {
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64", "F32": "float32", "U32": "uint32",
    "I32": "int32", "BF16": "bfloat16", "F16": "float16", "U16": "uint16", "I16": "int16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

FLOATS = ("F64", "F32", "F16", "BF16")
"""The element types that a network's weights may have."""


class TensorInfo(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    """As safetensors names it: F32, BF16 ..."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8


class TensorFile(ABC):
    """Names, shapes and metadata at once; the numbers tensor by tensor, when asked for."""

    tensors: Mapping[str, TensorInfo]
    """In their order on disk."""
    metadata: Mapping[str, str]

    @property
    @abstractmethod
    def label(self) -> str:
        """What to call it in a message."""

    @property
    @abstractmethod
    def paths(self) -> Sequence[Path]:
        """The files on disk; none for a model in memory."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU in its stored dtype. It may be a view of the file: not to be written to."""


@dataclass(frozen=True, eq=False)
class MemoryTensors(TensorFile):
    """Tensors that are in memory already, seen as a file."""

    values: Mapping[str, Tensor]
    label: str = "memory"
    paths: tuple[Path, ...] = ()

    @property
    def metadata(self) -> Mapping[str, str]:  # type: ignore[override]
        return {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:  # type: ignore[override]
        return {name: TensorInfo(dtype_name(value.dtype), tuple(value.shape)) for name, value in self.values.items()}

    def read(self, name: str) -> Tensor:
        return self.values[name].detach().cpu()


class Shards(TensorFile):
    """Several files as one: a sharded weight file. CheckpointError where two of them hold the same name."""

    def __init__(self, files: Sequence[TensorFile], label: str) -> None:
        self._label = label
        self._files = tuple(files)
        self._home: dict[str, TensorFile] = {}
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in tensors:
                    raise CheckpointError(f"{label}: tensor {name} is in two shards; download the model again")
                tensors[name] = info
                self._home[name] = file
        self.tensors = tensors
        self.metadata = files[0].metadata if files else {}

    @property
    def label(self) -> str:
        return self._label

    @property
    def paths(self) -> Sequence[Path]:
        return [path for file in self._files for path in file.paths]

    def read(self, name: str) -> Tensor:
        return self._home[name].read(name)


def torch_dtype(name: str) -> torch.dtype:
    """torch's type for a safetensors one. CheckpointError for those it has no arithmetic for."""
    import torch

    if name not in _TORCH_NAMES:
        raise CheckpointError(f"element type {name} is not supported; convert the file to F16, BF16 or F32")
    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of one of torch's types."""
    text = str(dtype).removeprefix("torch.")
    for name, torch_name in _TORCH_NAMES.items():
        if torch_name == text:
            return name
    raise CheckpointError(f"tensors of type {text} cannot be written; convert them to float32")


def canonical_order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The order in which the safetensors library writes: wide types first, then by name."""
    rank = {dtype: i for i, dtype in enumerate(DTYPE_BITS)}
    return sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))


def in_words(names: Iterable[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    listed = list(names)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
