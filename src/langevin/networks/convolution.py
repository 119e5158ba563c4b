"""The 3 x 3 convolution of the blocks: torch's, but for the gradient of its weight where torch's is slow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_FEW = 2048
"""Up to this many positions, over all of a batch, the gradient of the weight is one product of matrices."""


class Conv3x3(nn.Conv2d):
    """A convolution of 3 x 3 with a border of zeros: height and width stay as they are."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """input: B C H W. Returns B C' H W."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if not _is_learned_at_few_positions(input, self.weight, dtype):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(dtype)
        out: Tensor = _Convolve.apply(input.to(dtype), self.weight.to(dtype), bias)
        return out


def _is_learned_at_few_positions(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN would be slow at the gradient of the weight: in bfloat16 on a CPU, with few positions.

    It takes 3.5 times as long as one product of matrices for 256 channels at 32 maps of 4 x 4, 5 times for 1280 at two
    of 16 x 16 (a batch of two in Stable Diffusion's lower levels), 1.7 times for 640 at two of 32 x 32, and 0.7 times
    for 192 at 64 maps of 8 x 8. In float32 it is the faster one. Intel Xeon with AMX, torch 2.13.
    """
    return (
        x.device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and weight.requires_grad
        and not torch.compiler.is_compiling()  # which does not trace it with sizes that vary
        and x.shape[0] * x.shape[2] * x.shape[3] <= _FEW
    )


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            conv2d_input(x.shape, weight, gradient, padding=1) if of_x else None,
            _weight_gradient(x, gradient) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """x: B C H W; gradient: B O H W, of the convolution's output. Returns O C 3 3."""
    channels, height, width = x.shape[1:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # B H+2 W+2 C
    windows = torch.cat([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)
    product = gradient.transpose(0, 1).flatten(1) @ windows.flatten(0, 2)  # O (9 C)
    return product.unflatten(1, (9, channels)).transpose(1, 2).reshape(-1, channels, 3, 3)
