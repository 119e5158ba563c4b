"""How much memory a run will need: the networks are run on torch's meta device, where tensors have no memory, and
the tensors that are alive at the same time are added up."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes. An estimate: it knows the tensors that are alive, not the scratch space of kernels and libraries."""

    weights: Mapping[str, int]
    """Of each network, exactly."""
    activations: Mapping[str, int]
    """Of each stage of the run at its worst moment, inputs and outputs included."""

    @property
    def total(self) -> int:
        """All weights and the worst stage."""
        return sum(self.weights.values()) + max(self.activations.values(), default=0)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers."""
    return sum(_bytes(t) for t in [*network.parameters(), *network.buffers()])


def activation_bytes(function: Callable[..., Any], *inputs: Tensor) -> int:
    """The most bytes that tensors occupy at one moment of `function(*inputs)`, the inputs among them, the weights not.

    Networks and inputs must be on the meta device: nothing is computed. Attention counts with its inputs and its
    output alone, as kernels have it that never hold the whole matrix of weights.
    """
    with torch.no_grad(), _Watch(inputs) as watch:
        function(*inputs)
    return watch.most


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _conv2d(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return x.new_empty(len(x), len(weight), *size)


def _interpolate(x: Tensor, size: Any = None, scale_factor: float | None = None, **_: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], *(size or (int(n * (scale_factor or 1)) for n in x.shape[2:])))


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return tensors[0].new_empty(shape)


def _elementwise(*values: Any, **_: Any) -> Tensor:
    tensors = [v for v in values if isinstance(v, Tensor)]
    # Not torch.broadcast_shapes, which imports the compiler too.
    shape = [max(sizes) for sizes in zip_longest(*(reversed(t.shape) for t in tensors), fillvalue=1)]
    return max(tensors, key=Tensor.numel).new_empty(shape[::-1])


_SHAPES: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: lambda q, k, v, *_, **__: q.new_empty(*q.shape[:-1], v.shape[-1]),
    F.conv2d: _conv2d,
    F.linear: lambda x, weight, *_, **__: x.new_empty(*x.shape[:-1], len(weight)),
    F.group_norm: lambda x, *_, **__: x.new_empty(x.shape),
    torch.arange: lambda *args, device, **_: torch.arange(*args, device="cpu").to(device),
    F.layer_norm: lambda x, *_, **__: x.new_empty(x.shape),
    torch.var_mean: lambda x, *_, **__: (x.new_empty(x.shape[:-1]), x.new_empty(x.shape[:-1])),  # over the last axis
    F.interpolate: _interpolate,
    torch.cat: _cat,
    Tensor.add_: lambda x, *_, **__: x,
    **dict.fromkeys(
        [
            *(Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, Tensor.square, Tensor.clamp, torch.rsqrt),
            *(torch.exp, Tensor.cos, Tensor.sin, torch.sigmoid, F.silu, F.gelu),
        ],
        _elementwise,
    ),
}
"""Results of attention, and of the calls that the meta device takes apart in Python: for those it would first import
torch's compiler, which takes longer than all the rest."""


class _Watch(TorchFunctionMode):
    """Adds up what calls of torch make, until it is let go."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.now = self.most = sum(_bytes(t) for t in inputs)
        self._known = weakref.WeakSet(t.untyped_storage() for t in inputs)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _SHAPES.get(function, function)(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._grow(storage.nbytes())
            weakref.finalize(storage, self._grow, -storage.nbytes())

    def _grow(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)
