"""The 3 x 3 convolution whose weight learns from few positions: torch's own numbers, another way of summing them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.networks.convolution import Conv3x3, _weight_gradient


def gradients(layer: Conv3x3, x: Tensor, forward: object) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = forward(x)  # type: ignore[operator]
    assert out.dtype == torch.bfloat16
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    loss = (out.float() * weights).sum()
    return (out, *torch.autograd.grad(loss, (x, layer.weight, layer.bias)))


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (2, 4, 4), (3, 5, 8)])
def test_the_weights_gradient_is_that_of_the_convolution(batch: int, height: int, width: int) -> None:
    x = torch.randn(batch, 6, height, width, dtype=torch.float64)
    weight = torch.randn(10, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, weight, padding=1)
    upstream = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, weight, upstream)
    torch.testing.assert_close(_weight_gradient(x, upstream), expected, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_it_learns_as_torchs_layer_does() -> None:
    torch.manual_seed(0)
    layer = Conv3x3(32, 64)
    x = torch.randn(4, 32, 8, 8)
    ours = gradients(layer, x, layer)
    assert "_Convolve" in type(ours[0].grad_fn).__name__
    plain = gradients(layer, x, lambda x: F.conv2d(x, layer.weight, layer.bias, padding=1))
    assert torch.equal(ours[0], plain[0])
    for got, expected in zip(ours[1:], plain[1:], strict=True):
        # Both sum in float32 and round to bfloat16 once.
        assert got.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-7 * float(expected.abs().mean()))


@pytest.mark.parametrize("why", ["float32", "frozen", "no backward pass", "many positions", "compiling"])
def test_elsewhere_it_is_torchs_layer(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: why == "compiling")
    layer = Conv3x3(8, 8).requires_grad_(why != "frozen")
    x = torch.randn(1, 8, 48, 48) if why == "many positions" else torch.randn(1, 8, 4, 4)
    x.requires_grad_()
    precision = torch.autocast("cpu", torch.bfloat16, enabled=why != "float32")
    with torch.set_grad_enabled(why != "no backward pass"), precision:
        out = layer(x)
    assert "_Convolve" not in type(out.grad_fn).__name__
    assert (out.grad_fn is None) == (why == "no backward pass")


def test_weights_in_bfloat16_learn_the_same_way_without_autocast() -> None:
    layer = Conv3x3(32, 32).to(torch.bfloat16)
    out = layer(torch.randn(2, 32, 4, 4, dtype=torch.bfloat16))
    assert "_Convolve" in type(out.grad_fn).__name__
    out.float().square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.bfloat16
    assert layer.bias is not None and layer.bias.grad is not None
