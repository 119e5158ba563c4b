"""An autoencoder that learns from random squares of its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from langevin.errors import RequestError
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.objectives.autoencoder import AutoencoderObjective, cropped
from langevin.training.randomness import sample_generators

SAMPLES = [(0, 3), (0, 8), (1, 3)]


@pytest.fixture(scope="module")
def data(shapes: Path) -> PictureSet:
    return read_data(shapes, DataConfig(size=32))


def objective(data: PictureSet, crop: int | None) -> AutoencoderObjective:
    torch.manual_seed(5)
    network = AutoencoderKL(AutoencoderConfig(base_channels=8, channel_mult=(1, 1), num_res_blocks=1, groups=2))
    return AutoencoderObjective(network, data, seed=0, kl_weight=1e-4, edge_weight=1.0, device="cpu", crop=crop)


def test_squares_lie_in_their_pictures_and_reach_every_border() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(300, 2, 6, 9)  # each pixel says where it lies
    squares = cropped(images, 4, sample_generators(0, "crop", 0, [(0, i) for i in range(300)]))
    assert squares.shape == (300, 2, 4, 4)
    tops, lefts = squares[:, 0, 0, 0], squares[:, 1, 0, 0]
    assert torch.equal(squares[:, 0], tops.view(-1, 1, 1) + torch.arange(4.0).view(1, 4, 1).expand(1, 4, 4))
    assert torch.equal(squares[:, 1], lefts.view(-1, 1, 1) + torch.arange(4.0).view(1, 1, 4).expand(1, 4, 4))
    assert set(tops.tolist()) == {0, 1, 2} and set(lefts.tolist()) == {0, 1, 2, 3, 4, 5}


def test_a_sample_has_its_own_square_wherever_the_batch_is_cut(data: PictureSet) -> None:
    images = data.images([index for _, index in SAMPLES])
    whole = cropped(images, 16, sample_generators(0, "crop", 7, SAMPLES))
    alone = [cropped(images[i : i + 1], 16, sample_generators(0, "crop", 7, SAMPLES[i : i + 1])) for i in range(3)]
    assert torch.equal(whole, torch.cat(alone))
    assert not torch.equal(whole, cropped(images, 16, sample_generators(0, "crop", 8, SAMPLES)))


def test_the_loss_is_that_of_the_squares(data: PictureSet) -> None:
    whole, part = objective(data, None), objective(data, 16)
    assert "crop" not in whole.facts and part.facts["crop"] == 16
    seen: list[torch.Size] = []
    part.network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    loss = part.loss(SAMPLES, 0)[0]
    assert seen == [(3, 3, 16, 16)]
    assert torch.isfinite(loss) and loss != whole.loss(SAMPLES, 0)[0]
    assert objective(data, 32).loss(SAMPLES, 0)[0] == whole.loss(SAMPLES, 0)[0]


@pytest.mark.parametrize("crop", [15, 34])
def test_a_square_that_does_not_fit_is_refused(data: PictureSet, crop: int) -> None:
    with pytest.raises(RequestError, match=rf"autoencoder.crop {crop}: a multiple of the factor 2 and at most .* 32"):
        objective(data, crop)
