"""Networks on a torus: every convolution wraps around at the edges of the picture, so that its ends fit together.

A copy of the network wraps; its weights are those of the original, which stays as it is. All parameters keep their
names, so that adapters are merged into a network that wraps like into any other.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.networks.autoencoder import AsymmetricDownsample

N = TypeVar("N", bound=nn.Module)


class WrappingConv2d(nn.Conv2d):
    """A convolution whose padding is what lies at the other end of the picture, along the axes that wrap."""

    def __init__(self, conv: nn.Conv2d, *, x: bool, y: bool) -> None:
        """Takes the weights of `conv`, which stays as it is."""
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            cast(tuple[int, int], conv.stride),
            cast(tuple[int, int], conv.padding),
            cast(tuple[int, int], conv.dilation),
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.wraps_x, self.wraps_y = x, y

    def forward(self, input: Tensor) -> Tensor:
        """input: B C H W. Returns what the convolution that it was made of would, but for the edges."""
        down, right = cast(tuple[int, int], self.padding)
        around = (right, right, 0, 0) if self.wraps_x else (0, 0, 0, 0)
        around = (*around[:2], down, down) if self.wraps_y else around
        rest = (0 if self.wraps_y else down, 0 if self.wraps_x else right)
        h = F.pad(input, around, mode="circular")
        return F.conv2d(h, self.weight, self.bias, self.stride, rest, self.dilation, self.groups)


class WrappingDownsample(AsymmetricDownsample):
    """The encoder's halving, which pads at the right and bottom alone."""

    def __init__(self, down: AsymmetricDownsample, *, x: bool, y: bool) -> None:
        nn.Module.__init__(self)
        self.conv = down.conv
        self.wraps_x, self.wraps_y = x, y

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B C H/2 W/2."""
        x = F.pad(x, (0, 1, 0, 0), mode="circular") if self.wraps_x else F.pad(x, (0, 1, 0, 0))
        x = F.pad(x, (0, 0, 0, 1), mode="circular") if self.wraps_y else F.pad(x, (0, 0, 0, 1))
        h: Tensor = self.conv(x)
        return h


def wrapping(network: N, *, x: bool, y: bool) -> N:
    """A copy of a U-Net or an autoencoder that wraps along the axes: x makes the left and right edges fit together, y
    top and bottom. The weights are shared.

    The copy is equivariant: what is moved around the torus comes out moved, by steps that the strides of the network
    divide. For that, the size along an axis that wraps must be a multiple of the product of the strides. A network
    without padding, or no axis: the network itself.
    """
    if not (x or y):
        return network
    found = {name: module for name, module in network.named_modules() if _pads(module)}
    if not found:
        return network
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed = copy.deepcopy(network, memo)
    for name in found:
        parent, _, last = name.rpartition(".")
        module = changed.get_submodule(name)
        new: nn.Module = (
            WrappingDownsample(module, x=x, y=y)
            if isinstance(module, AsymmetricDownsample)
            else WrappingConv2d(cast(nn.Conv2d, module), x=x, y=y)
        )
        setattr(changed.get_submodule(parent), last, new.train(module.training))
    return changed


def _pads(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.padding != (0, 0)
    return isinstance(module, AsymmetricDownsample)
