"""Networks whose convolutions wrap: what is moved around comes out moved, and the ends fit together."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import randomise
from torch import Tensor, nn

from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.lora import LoraWeights, merged
from langevin.networks.unet import UNet, UNetConfig
from langevin.networks.wrapping import WrappingConv2d, wrapping


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    network = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1))
    randomise(network, 0)
    return network


@pytest.fixture(scope="module")
def unet() -> UNet:
    network = UNet(
        UNetConfig(
            model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(True, False), num_heads=2,
            context_channels=None,
        )
    )  # fmt: skip
    randomise(network, 1)
    return network


def moved(x: Tensor, down: int, right: int) -> Tensor:
    return x.roll((down, right), (2, 3))


@torch.no_grad()
@pytest.mark.parametrize(("x", "y"), [(True, False), (False, True), (True, True)])
def test_what_is_moved_around_comes_out_moved(autoencoder: AutoencoderKL, unet: UNet, x: bool, y: bool) -> None:
    """By whole strides along the axes that wrap, and not along one that does not."""
    generator = torch.Generator().manual_seed(2)
    z, t = torch.randn(1, 4, 8, 12, generator=generator), torch.tensor([300.0])
    image = torch.rand(1, 3, 32, 48, generator=generator)
    turned, codec = wrapping(unet, x=x, y=y), wrapping(autoencoder, x=x, y=y)
    for down, right, wraps in ((0, 2, x), (4, 0, y), (2, 6, x and y)):
        same = (turned(moved(z, down, right), t) - moved(turned(z, t), down, right)).abs().max() < 1e-5
        assert bool(same) == wraps
        same = (codec.decode(moved(z, down, right)) - moved(codec.decode(z), 4 * down, 4 * right)).abs().max() < 1e-5
        assert bool(same) == wraps
        gap = codec.moments(moved(image, 4 * down, 4 * right))[0] - moved(codec.moments(image)[0], down, right)
        assert bool(gap.abs().max() < 1e-5) == wraps


@torch.no_grad()
def test_there_is_no_seam(autoencoder: AutoencoderKL, unet: UNet) -> None:
    """A latent of equal columns: where the network wraps, no column is special, and without that the edges are."""
    z = torch.randn(1, 4, 8, 1, generator=torch.Generator().manual_seed(3)).expand(1, 4, 8, 8)
    t = torch.tensor([300.0])

    def seam(image: Tensor) -> float:
        """The step from the last column to the first, as a multiple of the whole picture's deviation."""
        return float((image[..., 0] - image[..., -1]).abs().max() / image.std())

    def steps(image: Tensor) -> float:
        return float((image - image.roll(1, 3)).abs().max() / image.std())

    turned, codec = wrapping(unet, x=True, y=False), wrapping(autoencoder, x=True, y=False)
    for ours, plain in ((codec.decode(z), autoencoder.decode(z)), (turned(z, t), unet(z, t))):
        assert seam(ours) < 1e-4 and steps(ours) < 1e-4
        assert seam(plain) > 0.1
    tall = z.transpose(2, 3)
    assert seam(codec.decode(tall).transpose(2, 3)) > 0.1  # the other axis does not wrap


@torch.no_grad()
def test_the_original_stays_and_weights_are_shared(unet: UNet, autoencoder: AutoencoderKL) -> None:
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([10.0])
    before = unet(z, t)
    turned = wrapping(unet, x=True, y=True)
    assert not torch.equal(turned(z, t), before) and torch.equal(unet(z, t), before)
    for network in (unet, autoencoder):
        copy = wrapping(network, x=True, y=False)
        ours, theirs = dict(copy.named_parameters()), dict(network.named_parameters())
        assert list(ours) == list(theirs) and all(ours[name] is theirs[name] for name in ours)
        assert not any(isinstance(m, WrappingConv2d) for m in network.modules())
    assert wrapping(unet, x=False, y=False) is unet
    linear = nn.Linear(2, 2)
    assert wrapping(linear, x=True, y=True) is linear


@torch.no_grad()
def test_adapters_are_merged_before_or_after_with_one_result(unet: UNet) -> None:
    name = "input_blocks.1.0.in_layers.2"
    generator = torch.Generator().manual_seed(5)
    lora = {name: LoraWeights(torch.randn(2, 32, 3, 3, generator=generator), torch.randn(32, 2, 1, 1), 2.0)}
    z, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([10.0])
    first = wrapping(merged(unet, lora), x=True, y=True)
    last = merged(wrapping(unet, x=True, y=True), lora)
    assert torch.equal(first(z, t), last(z, t))
    assert not torch.allclose(first(z, t), wrapping(unet, x=True, y=True)(z, t))
