"""The PixelCNN++: what it may see, and that pixel by pixel it is the same network."""

from __future__ import annotations

import math

import pytest
import torch
from tests.conftest import randomise
from torch import Tensor

from langevin.baselines.logistic import log_probability, split
from langevin.baselines.pixelcnn import PixelCnnObjective, TrainedPixelCnn, bits_per_dim
from langevin.baselines.pixelcnn_network import PixelByPixel, PixelCnn, PixelCnnConfig
from langevin.errors import DataError
from langevin.training.data import PictureSet

CONFIGS = [
    PixelCnnConfig(size=8, channels=3, width=4, levels=3, blocks=2, components=2),
    PixelCnnConfig(size=6, channels=1, width=5, levels=2, blocks=1, components=3),
    PixelCnnConfig(size=4, channels=1, width=4, levels=1, blocks=1, components=1),
]


def network(config: PixelCnnConfig) -> PixelCnn:
    made = randomise(PixelCnn(config).double(), seed=1)
    assert isinstance(made, PixelCnn)
    return made


def pictures(config: PixelCnnConfig, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (count, config.channels, config.size, config.size), generator=generator)
    return levels.double() / 127.5 - 1


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_pixel_s_mixture_depends_on_all_pixels_before_it_and_on_no_other(config: PixelCnnConfig) -> None:
    net, x = network(config), pictures(config, 1)
    before = net(x)
    for k in range(config.size**2):
        changed = x.clone()
        changed[:, :, k // config.size, k % config.size] += 0.3
        apart = (net(changed) - before).abs().amax((0, 1)).flatten()
        assert float(apart[: k + 1].max()) == 0
        assert bool((apart[k + 1 :] > 0).all())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pixel_by_pixel_it_is_the_same_network(config: PixelCnnConfig) -> None:
    net, x = network(config), pictures(config)
    whole = net(x)
    steps = PixelByPixel(net, len(x))
    for k in range(config.size**2):
        row, column = divmod(k, config.size)
        assert (steps.parameters_of_next()[..., 0, 0] - whole[:, :, row, column]).abs().max() < 1e-12
        steps.put(x[:, :, row, column])


def test_bits_per_dim_is_the_sum_over_pixels() -> None:
    config = CONFIGS[0]
    net, x = network(config), pictures(config)
    parameters = net(x)
    total = torch.zeros(2, dtype=torch.float64)
    for row in range(8):
        for column in range(8):
            pixel = x[:, :, row : row + 1, column : column + 1]
            mixture = split(parameters[:, :, row : row + 1, column : column + 1], 3)
            total += -log_probability(mixture, pixel)[:, 0, 0] / math.log(2)
    assert (bits_per_dim(parameters, x) - total / (3 * 64)).abs().max() < 1e-10
    assert (TrainedPixelCnn(net.float()).bits_per_dim(x.float()) - total / 192).abs().max() < 1e-4


def test_a_sample_is_a_function_of_its_seed_alone() -> None:
    model = TrainedPixelCnn(network(CONFIGS[1]).float())
    together = model.sample([5, 6, 7])
    assert together.shape == (3, 3, 6, 6)
    assert (model.sample([6])[0] - together[1]).abs().max() < 1 / 255
    assert not torch.equal(together[0], together[1])


def test_what_it_samples_it_finds_as_probable_as_its_entropy() -> None:
    """The mean bits of its own samples and those of a deterministic sum over one pixel's values."""
    config = PixelCnnConfig(size=1, channels=1, width=4, levels=1, blocks=1, components=2)
    net = network(config).float()
    model = TrainedPixelCnn(net)
    levels = torch.arange(256).view(256, 1, 1, 1) / 127.5 - 1
    bits = model.bits_per_dim(levels.expand(-1, 3, -1, -1))
    entropy = float((bits * 2.0**-bits).sum())
    assert float((2.0**-bits).sum()) == pytest.approx(1, abs=1e-6)
    sampled = model.bits_per_dim(model.sample(range(4000)))
    assert float(sampled.mean()) == pytest.approx(entropy, abs=5 * float(sampled.std()) / 4000**0.5)


def test_it_learns(grey: PictureSet) -> None:
    torch.manual_seed(0)
    objective = PixelCnnObjective(
        PixelCnn(PixelCnnConfig(size=8, width=8, levels=2, components=3)), grey, seed=0, device="cpu"
    )
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=0.01)
    losses = []
    for step in range(40):
        loss, _ = objective.loss([(0, (16 * step + i) % len(grey)) for i in range(16)], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0] < 8


def test_wrong_sizes_and_colours_are_refused(grey: PictureSet) -> None:
    with pytest.raises(ValueError, match="size 6: must be a multiple of 4 for 3 levels"):
        PixelCnnConfig(size=6, levels=3)
    with pytest.raises(ValueError, match="channels 2: must be 1 or 3"):
        PixelCnnConfig(channels=2)
    with pytest.raises(DataError, match="8 x 8 pixels, the network takes 12 x 12 alone"):
        PixelCnnObjective(PixelCnn(PixelCnnConfig(size=12, width=4)), grey, seed=0, device="cpu")
    coloured = PictureSet(grey.pictures.clone(), grey.records, "x")
    coloured.pictures[5, 0, 0, 0] = 77
    with pytest.raises(DataError, match=r"have colours and the network one channel: --set STAGE\.network\.channels=3"):
        PixelCnnObjective(PixelCnn(PixelCnnConfig(size=8, width=4)), coloured, seed=0, device="cpu")
