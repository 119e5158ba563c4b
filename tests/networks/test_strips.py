"""The autoencoder in strips: the same numbers as in one piece, with less memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import randomise

from langevin.networks import strips
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.wrapping import wrapping
from langevin.tasks.memory import activation_bytes


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    """f8, every level of another width."""
    config = AutoencoderConfig(base_channels=32, channel_mult=(1, 2, 2, 3), num_res_blocks=1)
    network = AutoencoderKL(config)
    randomise(network, 0)
    return network


@pytest.fixture(autouse=True)
def _thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of 5 rows and of 16, so that small pictures have several of unequal heights."""
    monkeypatch.setattr(strips, "LEAST_ROWS", 5)
    monkeypatch.setattr(strips, "STRIP", 2**13)


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 4),
    batch=st.integers(1, 2),
    x=st.booleans(),
    y=st.booleans(),
)
def test_any_size_gives_what_the_whole_gives(
    autoencoder: AutoencoderKL, height: int, width: int, batch: int, x: bool, y: bool
) -> None:
    network = wrapping(autoencoder, x=x, y=y)
    generator = torch.Generator().manual_seed(height * 7 + width)
    image = 2 * torch.rand(batch, 3, 8 * height, 8 * width, generator=generator) - 1
    z = torch.randn(batch, 4, height, width, generator=generator)
    assert torch.allclose(strips.decode(network, z), network.decode(z), atol=2e-5)
    for ours, whole in zip(strips.encode(network, image), network.moments(image), strict=True):
        assert ours.shape == (batch, 4, height, width)
        assert torch.allclose(ours, whole, atol=2e-5)


@torch.no_grad()
def test_statistics_survive_a_large_mean() -> None:
    """In float32 the square of 4096 leaves nothing of a variance of 1e-4: sums of squares would be lost."""
    h = 4096 + 0.01 * torch.randn(2, 6, 40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = strips.moments(strips.Kept.of(h.float()), 3)
    exact = h.float().double().unflatten(1, (3, 2)).flatten(2)
    assert torch.allclose(mean, exact.mean(2), atol=5e-4)  # half the spacing of float32 there
    assert torch.allclose(variance, exact.var(2, correction=0), rtol=1e-2)


@torch.no_grad()
def test_half_precision_keeps_its_statistics_in_float32(autoencoder: AutoencoderKL) -> None:
    z = torch.randn(1, 4, 5, 4, generator=torch.Generator().manual_seed(0))
    half = AutoencoderKL(autoencoder.config).to(torch.bfloat16)
    half.load_state_dict(autoencoder.state_dict())
    exact = autoencoder.decode(z)
    ours, whole = (decode(half, z.bfloat16()) for decode in (strips.decode, AutoencoderKL.decode))
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).abs().mean() < 1.2 * (whole.float() - exact).abs().mean()


def test_memory_is_that_of_about_one_feature_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the meta device: Stable Diffusion's autoencoder, 768 x 768 pixels, float32."""
    monkeypatch.undo()
    with torch.device("meta"):
        network = AutoencoderKL(AutoencoderConfig())
        z, image = torch.empty(1, 4, 96, 96), torch.empty(1, 3, 768, 768)
    one = 4 * 128 * 768 * 768
    assert activation_bytes(lambda z: strips.decode(network, z), z) < 1.9 * one
    assert activation_bytes(lambda x: strips.encode(network, x), image) < 1.5 * one
    assert activation_bytes(network.decode, z) > 5.9 * one
    assert activation_bytes(network.moments, image) > 4.9 * one
