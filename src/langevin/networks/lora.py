"""Low-rank adaptation (Hu et al. 2021): a trained layer W x gets (alpha / rank) up(down(x)) beside it.

Nothing in the other networks knows of it: an adapter is attached to a layer by a hook, or merged into its weight.
Other kinds of adapters, which are merged only, are in `langevin.networks.lycoris`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


class Adapter(Protocol):
    """What is added to a layer's weight, as files hold it."""

    @property
    def rank(self) -> int | None:
        """None for what has none; its alpha means nothing then."""

    @property
    def alpha(self) -> float: ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of what is added; None where its parts do not fit each other. Places may be flattened into the channels."""

    def change(self, weight: Tensor) -> Tensor:
        """What is added to the weight at strength 1, float32, in the weight's shape and on its device."""


class LoraWeights(NamedTuple):
    """One layer's adapter as files hold it. Its effect on the layer's weight is (alpha / rank) up down."""

    down: Tensor
    """[r, in], or [r, in, h, w] with the convolution's kernel."""
    up: Tensor
    """[out, r], or [out, r, 1, 1]."""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, ...] | None:
        inner = self.down.ndim >= 2 and self.up.ndim >= 2 and self.up.shape[1] == self.rank
        return (len(self.up), *self.down.shape[1:]) if inner and all(n == 1 for n in self.up.shape[2:]) else None

    def change(self, weight: Tensor) -> Tensor:
        return scaled(self, self.up.float().flatten(1) @ self.down.float().flatten(1), weight)


class LoraLayer(nn.Module):
    """The adapter of a linear layer or a convolution. It begins as nothing: `up` is zero."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """dropout: of the layer's input, on the adapter's way alone (Hu et al. 2021, section 5). Raises TypeError for
        another kind of layer, ValueError for a rank below 1."""
        super().__init__()
        if rank < 1:
            raise ValueError(f"LoRA rank {rank}: must be at least 1")
        self.alpha = alpha
        self.rank = rank
        self.dropout = nn.Dropout(dropout)
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        elif isinstance(base, nn.Conv2d) and base.groups == 1:
            # The kernel is the first part's, so that the rank bounds all of its places together.
            self.down = nn.Conv2d(
                base.in_channels,
                rank,
                base.kernel_size,  # type: ignore[arg-type]
                base.stride,  # type: ignore[arg-type]
                base.padding,  # type: ignore[arg-type]
                base.dilation,  # type: ignore[arg-type]
                bias=False,
            )
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            raise TypeError(f"no LoRA for {base}")
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the layer's output, in the adapter's dtype. x: the layer's input."""
        out: Tensor = self.up(self.down(self.dropout(x.to(self.down.weight.dtype))))
        return (self.alpha / self.rank) * out

    def weights(self) -> LoraWeights:
        """As files hold it."""
        return LoraWeights(self.down.weight.detach(), self.up.weight.detach(), self.alpha)


class LoraAdapters(nn.Module):
    """The adapters of some layers of a network, by the layers' names. It holds nothing of the network itself, so that
    optimiser, average and checkpoints of it hold the adapters alone."""

    def __init__(
        self, network: nn.Module, names: Iterable[str], *, rank: int, alpha: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name in names:
            base: Any = network.get_submodule(name)
            self.layers[name.replace(".", "/")] = LoraLayer(base, rank, alpha, dropout)  # no key may hold a point

    def named_layers(self) -> Iterator[tuple[str, LoraLayer]]:
        """Each adapter with the name of its layer in the network."""
        for key, layer in self.layers.items():
            assert isinstance(layer, LoraLayer)
            yield key.replace("/", "."), layer

    def weights(self) -> dict[str, LoraWeights]:
        """By the layers' names."""
        return {name: layer.weights() for name, layer in self.named_layers()}


class Attached:
    """Adapters at work on a network, until `detach`. The network's own weights stay as they are."""

    def __init__(self, network: nn.Module, adapters: LoraAdapters) -> None:
        self._current: LoraAdapters | None = adapters
        self._handles = [
            network.get_submodule(name).register_forward_hook(self._hook(key))
            for key, name in ((key, key.replace("/", ".")) for key in adapters.layers)
        ]

    @contextmanager
    def using(self, adapters: LoraAdapters) -> Iterator[None]:
        """Others in their place for a while: the moving average of the same layers."""
        before, self._current = self._current, adapters
        try:
            yield
        finally:
            self._current = before

    @contextmanager
    def resting(self) -> Iterator[None]:
        """No adapters for a while: the network as it is by itself."""
        before, self._current = self._current, None
        try:
            yield
        finally:
            self._current = before

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, key: str) -> Any:
        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._current is None:
                return output
            return output + self._current.layers[key](args[0]).to(output.dtype)

        return add


@torch.no_grad()
def merged(network: N, weights: Mapping[str, Adapter], strength: float = 1.0) -> N:
    """A copy of the network in which W + strength change(W) stands for each W; the sum is taken in float32 and rounded
    to W's dtype. The other parameters are shared with the original, which stays as it is.

    weights: by the names of the layers; what is for a layer's bias stands under "NAME.bias". Raises ValueError where an
    adapter's shape is not that of its weight. 1x1 convolutions and linear layers may stand for each other.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for name, adapter in weights.items():
        weight = network.get_parameter(parameter_name(name))
        if not fits(adapter, weight.shape):
            raise ValueError(f"{name}: an adapter of shape {adapter.shape} for a weight of {list(weight.shape)}")
        memo[id(weight)] = nn.Parameter(adapted(weight, adapter, strength), requires_grad=False)
    return copy.deepcopy(network, memo)


def adapted(weight: Tensor, adapter: Adapter, strength: float) -> Tensor:
    """W + strength change(W), taken in float32, in W's dtype."""
    return (weight.float() + strength * adapter.change(weight)).to(weight.dtype)


def parameter_name(name: str) -> str:
    """The parameter that an adapter changes which stands under this name."""
    return name if name.endswith(".bias") else f"{name}.weight"


def scaled(adapter: Adapter, value: Tensor, weight: Tensor) -> Tensor:
    """A change before its scale, with it and in the weight's shape: times alpha / rank where there is a rank."""
    scale = 1.0 if adapter.rank is None else adapter.alpha / adapter.rank
    return scale * value.reshape(weight.shape).to(weight.device)


def fits(adapter: Adapter, shape: torch.Size) -> bool:
    """Whether an adapter belongs to a weight of this shape."""
    found, wanted = adapter.shape, tuple(shape)
    if found is None or len(found) < 2 or len(wanted) < 2:
        return found == wanted
    # A matrix may stand for a convolution: its places are among the columns.
    return found == wanted or (
        found[0] == wanted[0]
        and math.prod(found[1:]) == math.prod(wanted[1:])
        and (len(found) == 2 or found[2:] == (1,) * len(found[2:]))
    )
