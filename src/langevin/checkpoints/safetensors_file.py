"""The safetensors format: reading with every bound checked, and writing byte for byte reproducibly.

The numbers are read through the safetensors library, memory-mapped. The header is parsed here too: it is needed without
torch, the library lets duplicate names pass, and its errors do not say what was found. Writing is done here because it
goes tensor by tensor in bounded memory and because the library orders metadata at random.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin.checkpoints.atomic import atomic_write
from langevin.checkpoints.foreign import first_bytes, foreign, is_pickle, is_zip
from langevin.checkpoints.tensorfile import DTYPE_BITS, TensorFile, TensorInfo, canonical_order
from langevin.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
MAX_TENSORS = 1_000_000
_SMALL_HEADER = 4_000_000
"""Headers above this size must be no more than a quarter of the file."""
_MAX_RANK = 32
"""Dimensions of a tensor: the product of a million of them would take minutes to compute."""
_METADATA = "__metadata__"


class SafetensorsFile(TensorFile):
    """A safetensors file, opened: header checked, numbers memory-mapped when read.

    Raises CheckpointError, in one line, for a file that is truncated, malformed or of another format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.size = 0
        self.tensors, self.metadata = self._header()
        self._handle: Any = None

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def paths(self) -> Sequence[Path]:
        return [self.path]

    def read(self, name: str) -> Tensor:
        if self._handle is None:
            from safetensors import SafetensorError, safe_open

            try:
                self._handle = safe_open(self.path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.path}: cannot be opened: {_one_line(error)}") from None
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def _header(self) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        head = first_bytes(self.path)
        self.size = self.path.stat().st_size
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else None
        if length is None or length > MAX_HEADER or head[8:9] != b"{":
            raise CheckpointError(f"{self.path}: {self._what(head)}")
        if length < 2 or (length > _SMALL_HEADER and length > self.size // 4):
            raise CheckpointError(
                f"{self.path}: safetensors header of {length:,} bytes in a file of {self.size:,}: "
                f"between 2 bytes and a quarter of the file is sound; it is truncated or damaged, download it again"
            )
        if 8 + length > self.size:
            raise CheckpointError(
                f"{self.path}: truncated: its header alone needs {8 + length:,} bytes, the file has {self.size:,}; "
                "download it again"
            )
        with open(self.path, "rb") as file:
            file.seek(8)
            text = file.read(length)
        try:
            # A name that stands there twice would have two meanings; json, like the library, would take the last.
            data = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: damaged safetensors header: {_one_line(error)}") from None
        return self._checked(data, self.size - 8 - length)

    def _checked(self, data: object, space: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        if not isinstance(data, dict):
            raise self._damaged("not a JSON object")
        metadata = data.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._damaged("metadata that is not text")
        if len(data) > MAX_TENSORS:
            raise self._damaged(f"{len(data):,} tensors, at most {MAX_TENSORS:,} are read")
        placed: list[tuple[int, int, str, TensorInfo]] = []
        for name, entry in data.items():
            info, begin, end = self._entry(name, entry)
            placed.append((begin, end, name, info))
        placed.sort(key=lambda item: item[:2])
        position = 0
        for begin, end, name, _ in placed:
            if begin != position:
                raise self._damaged(f"tensor {name!r} begins at byte {begin:,}, the one before ends at {position:,}")
            position = end
        if position > space:
            raise CheckpointError(
                f"{self.path}: truncated: {position + self.size - space:,} bytes expected, {self.size:,} found; "
                "download it again"
            )
        if position < space:
            raise self._damaged(f"{space - position:,} bytes after the last tensor")
        return {name: info for _, _, name, info in placed}, metadata

    def _entry(self, name: str, entry: object) -> tuple[TensorInfo, int, int]:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            raise self._damaged(f"tensor {name!r} has the unknown type {str(dtype)[:40]!r}")
        if not (_sizes(shape) and len(shape) <= _MAX_RANK and _sizes(offsets) and len(offsets) == 2):
            raise self._damaged(f"tensor {name!r} has the shape {str(shape)[:60]} at {str(offsets)[:60]}")
        info = TensorInfo(dtype, tuple(shape))
        if offsets[0] > offsets[1] or info.elements * DTYPE_BITS[dtype] != 8 * (offsets[1] - offsets[0]):
            raise self._damaged(f"tensor {name!r} of {info.bytes:,} bytes has {offsets[1] - offsets[0]:,} in the file")
        return info, offsets[0], offsets[1]

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged safetensors header: {what[:200]}; download it again")

    def _what(self, head: bytes) -> str:
        found = foreign(head)
        if found is None and (is_zip(head) or is_pickle(head)):
            found = "a PyTorch pickle (.ckpt) under another name"
        found = found or f"no safetensors header (first bytes {head[:8].hex(' ')})"
        return f"{found}; expected a safetensors file"


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    *,
    metadata: Iterable[tuple[str, str]] = (),
    order: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a file tensor by tensor, atomically; equal input gives equal bytes.

    `read` gives each tensor, of just the type and shape that `tensors` says (ValueError otherwise). `order`: all names
    in their order on disk, the library's own if not given. FileExistsError where `path` exists without `overwrite`.
    """
    order = canonical_order(tensors) if order is None else order
    if sorted(order) != sorted(tensors):
        raise ValueError("the order does not name every tensor once")
    header: dict[str, object] = {}
    if facts := dict(metadata):
        header[_METADATA] = facts
    position = 0
    for name in order:
        info = tensors[name]
        end = position + info.bytes
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomic_write(path, overwrite=overwrite) as temporary, open(temporary, "xb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            file.write(_bytes(read(name), tensors[name], name))


def _bytes(tensor: Tensor, info: TensorInfo, name: str) -> memoryview:
    import torch

    from langevin.checkpoints.tensorfile import dtype_name

    if dtype_name(tensor.dtype) != info.dtype or tuple(tensor.shape) != info.shape:
        raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} where {info} was announced")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name[:100]!r} stands there twice")
            seen.add(name)
    return result


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
