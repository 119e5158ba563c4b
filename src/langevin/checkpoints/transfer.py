"""Tensors between files and networks: fitting a file to an architecture, reading it, and laying it out anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from langevin.checkpoints.places import Place, Places
from langevin.checkpoints.tensorfile import FLOATS, TensorFile, TensorInfo, in_words, torch_dtype
from langevin.errors import CheckpointError

WORDS = {
    "unet": "U-Net",
    "vae": "autoencoder",
    "text": "text encoder",
    "control": "ControlNet",
    "adapter": "T2I-Adapter",
    "ip-adapter": "IP-Adapter",
    "image": "image encoder",
}
"""What the parts of a model are called in messages."""

_ALIGNMENT = 64
"""Bytes: where torch's allocator puts every tensor on the CPU."""


@dataclass(frozen=True, eq=False)
class Part:
    """One network's tensors in a file."""

    file: TensorFile
    places: Places
    """By our names."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the network's tensors, by our names."""

    def read(self, name: str) -> Tensor:
        """One of the network's tensors, in its stored dtype. It may be a view of the file."""
        place = self.places[name]
        tensor = self.file.read(place.name)
        if place.parts > 1:
            tensor = tensor.chunk(place.parts)[place.part]
        if place.transposed:
            tensor = tensor.T
        return tensor.reshape(self.shapes[name])

    def dtype(self, name: str) -> str:
        return self.file.tensors[self.places[name].name].dtype

    @property
    def stored_dtype(self) -> str:
        """The element types of its tensors, joined by "+"."""
        return "+".join(sorted({self.dtype(name) for name in self.places}))

    @property
    def used(self) -> set[str]:
        """The file's names of what it reads."""
        return {place.name for place in self.places.values()}


def fit(words: str, network: nn.Module, file: TensorFile, places: Places, present: Iterable[str]) -> Part:
    """The network's tensors found in a file, all of them and no others.

    network: on the meta device is enough. present: the file's names that belong to this network. Raises
    CheckpointError, in one line, for what is missing, of another shape or type, or too much.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    missing = [place.name for place in places.values() if place.name not in file.tensors]
    if missing:
        raise CheckpointError(
            f"{file.label}: {words}: {len(missing)} of {len(shapes)} tensors are missing ({in_words(missing)}); "
            "the file is incomplete or of another architecture"
        )
    for name, place in places.items():
        info = file.tensors[place.name]
        if not _fits(info, shapes[name], place):
            raise CheckpointError(
                f"{file.label}: {words}: {place.name} has shape {list(info.shape)}, "
                f"expected {list(_stored_shape(shapes[name], place))}"
            )
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f"{file.label}: {words}: {place.name} is stored as {info.dtype}, expected {', '.join(FLOATS)}; "
                "quantised files are not supported"
            )
    part = Part(file, places, shapes)
    used = part.used
    extra = [name for name in present if name not in used]
    if extra:
        raise CheckpointError(
            f"{file.label}: {words}: {len(extra)} tensors too many ({in_words(extra)}); "
            "the file is of another architecture"
        )
    return part


def load_into(network: nn.Module, part: Part, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """Give a network on the meta device its weights, tensor by tensor, strictly; ready for inference.

    Tensors that are stored in `dtype` and well aligned stay memory-mapped on the CPU.
    """
    state = {name: _aligned(part.read(name).to(device=device, dtype=dtype).contiguous()) for name in part.places}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _aligned(tensor: Tensor) -> Tensor:
    """A copy where the file's layout put a tensor off torch's own alignment: the CPU's matrix kernels round
    differently there, and the same weights from two files would give two pictures."""
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT else tensor


class Outgoing(TensorFile):
    """A part laid out under other names: what is to be written, seen as a file."""

    metadata: Mapping[str, str] = {}  # it never has any

    def __init__(self, part: Part, target: Places, dtype: str | None = None) -> None:
        """target: the new place of each of our names that is to be written; dtype: None keeps the stored types."""
        self._part = part
        self._dtype = dtype
        self._groups: dict[str, tuple[list[str], Place]] = {}
        for ours, place in sorted(target.items(), key=lambda item: item[1].part):
            self._groups.setdefault(place.name, ([], place))[0].append(ours)
        self.tensors = {
            name: TensorInfo(dtype or part.dtype(ours[0]), _stored_shape(part.shapes[ours[0]], place))
            for name, (ours, place) in self._groups.items()
        }

    @property
    def label(self) -> str:
        return self._part.file.label

    @property
    def paths(self) -> Sequence[Path]:
        return self._part.file.paths

    def read(self, name: str) -> Tensor:
        ours, place = self._groups[name]
        pieces = [self._part.read(n) for n in ours]
        if self._dtype is not None:
            pieces = [piece.to(torch_dtype(self._dtype)) for piece in pieces]
        tensor = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if place.transposed:
            tensor = tensor.T
        return tensor.reshape(self.tensors[name].shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit: NaN equals itself, and -0 is not 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _fits(info: TensorInfo, shape: Sequence[int], place: Place) -> bool:
    expected = _stored_shape(shape, place)
    if info.shape == expected:
        return True
    # The same weights as a matrix or as a 1x1 convolution.
    return _without_ones(info.shape) == _without_ones(expected) and {len(info.shape), len(expected)} == {2, 4}


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:2], *(n for n in shape[2:] if n != 1))


def _stored_shape(shape: Sequence[int], place: Place) -> tuple[int, ...]:
    stored = tuple(shape[:2]) if place.matrix else tuple(shape)
    if place.transposed:
        stored = tuple(reversed(stored))
    return (stored[0] * place.parts, *stored[1:]) if place.parts > 1 else stored
