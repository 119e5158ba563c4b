"""The autoencoder against diffusers', and by itself."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tests.networks.network_pairs import copy_autoencoder, difference, randomise

from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL


@pytest.mark.parametrize(
    ("channel_mult", "blocks", "latent", "groups"),
    [((1, 2, 2, 2), 2, 4, 32), ((1, 1, 2), 1, 3, 32), ((1, 2), 1, 4, 8)],
    ids=["f8", "f4", "f2 of 8 groups"],
)
def test_moments_and_pictures_agree(channel_mult: tuple[int, ...], blocks: int, latent: int, groups: int) -> None:
    config = AutoencoderConfig(
        base_channels=32, channel_mult=channel_mult, num_res_blocks=blocks, latent_channels=latent, groups=groups
    )
    ours = AutoencoderKL(config).eval()
    theirs = diffusers.AutoencoderKL(
        block_out_channels=tuple(32 * m for m in channel_mult),
        down_block_types=("DownEncoderBlock2D",) * len(channel_mult),
        up_block_types=("UpDecoderBlock2D",) * len(channel_mult),
        layers_per_block=blocks,
        latent_channels=latent,
        norm_num_groups=groups,
    ).eval()
    randomise(theirs)
    copy_autoencoder(ours, theirs)
    generator = torch.Generator().manual_seed(1)
    for height, width in [(4, 4), (3, 5)]:
        image = 2 * torch.rand(2, 3, config.factor * height, config.factor * width, generator=generator) - 1
        z = torch.randn(2, latent, height, width, generator=generator)
        with torch.no_grad():
            expected = theirs.encode(image).latent_dist
            mean, logvar = ours.moments(image)
            assert mean.shape == (2, latent, height, width)
            assert expected.mean.std() > 0.1
            assert difference(mean, expected.mean) < 1e-5
            assert difference(logvar, expected.logvar) < 1e-5
            picture = theirs.decode(z).sample
            assert picture.std() > 0.1
            assert difference(ours.decode(z), picture) < 1e-5


def test_log_variance_is_clamped() -> None:
    autoencoder = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1,), num_res_blocks=1))
    with torch.no_grad():
        autoencoder.quant_conv.weight.zero_()
        autoencoder.quant_conv.bias.copy_(torch.tensor([50.0, 50, -50, -50, 50, 7, -50, -7]))
        mean, logvar = autoencoder.moments(torch.zeros(1, 3, 2, 2))
    assert mean[0, :, 0, 0].tolist() == [50, 50, -50, -50]
    assert logvar[0, :, 0, 0].tolist() == [20, 7, -30, -7]


@pytest.mark.parametrize(
    ("channel_mult", "parameters", "tensors"), [((1, 2, 4, 4), 83_653_863, 248), ((1, 2, 4), 55_325_927, 204)]
)
def test_parameter_totals_of_stable_diffusion(channel_mult: tuple[int, ...], parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        autoencoder = AutoencoderKL(AutoencoderConfig(channel_mult=channel_mult))
    assert sum(p.numel() for p in autoencoder.parameters()) == parameters
    assert len(autoencoder.state_dict()) == tensors


def test_names_are_those_of_the_original_file() -> None:
    with torch.device("meta"):
        state = AutoencoderKL(AutoencoderConfig()).state_dict()
    assert state["encoder.down.2.downsample.conv.weight"].shape == (512, 512, 3, 3)
    assert state["encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    # The decoder's levels are numbered by resolution: 0 is the finest.
    assert state["decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    assert "decoder.up.0.upsample.conv.weight" not in state
    assert state["decoder.up.3.upsample.conv.weight"].shape == (512, 512, 3, 3)
    assert state["quant_conv.weight"].shape == (8, 8, 1, 1)


def test_learns_to_reproduce_pictures() -> None:
    autoencoder = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1), num_res_blocks=1))
    image = torch.nn.functional.interpolate(2 * torch.rand(4, 3, 4, 4) - 1, size=(16, 16))
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        mean, logvar = autoencoder.moments(image)
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        loss = (autoencoder.decode(z) - image).square().mean() + 1e-6 * (mean**2 + logvar.exp() - logvar).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    still = {name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()}
    # The bias of the keys shifts all logits of a query alike: its gradient is zero but for rounding.
    assert still <= {"encoder.mid.attn_1.k.bias", "decoder.mid.attn_1.k.bias"}


def test_channels_last_and_bfloat16() -> None:
    autoencoder = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 2))).eval()
    randomise(autoencoder)
    z = torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        expected = autoencoder.decode(z)
        autoencoder.to(memory_format=torch.channels_last)
        assert difference(autoencoder.decode(z.to(memory_format=torch.channels_last)), expected) < 1e-5
        half = autoencoder.bfloat16().decode(z.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() / expected.norm() < 0.05


def test_sizes_off_the_grid_and_odd_widths_are_refused() -> None:
    autoencoder = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1))
    with pytest.raises(ValueError, match="picture of 18 x 16: this autoencoder takes multiples of 4"):
        autoencoder.moments(torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="a level of 40 channels"):
        AutoencoderConfig(base_channels=40)
    with pytest.raises(ValueError, match="latent_channels 0: must be at least 1"):
        AutoencoderConfig(latent_channels=0)
    with pytest.raises(ValueError, match="channel_mult is empty"):
        AutoencoderConfig(channel_mult=())
