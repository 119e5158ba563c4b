"""The ImageGPT: what it may see, its cache, its clusters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import randomise

from langevin.baselines.clusters import assign, colours, k_means
from langevin.baselines.imagegpt import ImageGptObjective, TrainedImageGpt, tokens_of
from langevin.baselines.imagegpt_network import ImageGpt, ImageGptConfig, TokenByToken
from langevin.errors import DataError
from langevin.training.data import PictureSet

CONFIG = ImageGptConfig(size=4, width=12, layers=2, heads=3)


def network(config: ImageGptConfig = CONFIG) -> ImageGpt:
    made = randomise(ImageGpt(config).double(), seed=2)
    assert isinstance(made, ImageGpt)
    return made


def test_each_token_s_logits_depend_on_all_tokens_before_it_and_on_no_other() -> None:
    net = network()
    tokens = torch.randint(0, 256, (1, 16), generator=torch.Generator().manual_seed(0))
    before = net(tokens)
    for k in range(16):
        changed = tokens.clone()
        changed[0, k] = (changed[0, k] + 1) % 256
        apart = (net(changed) - before).abs().amax((0, 2))
        assert float(apart[: k + 1].max()) == 0
        assert bool((apart[k + 1 :] > 0).all())


def test_with_kept_keys_and_values_it_is_the_same_network() -> None:
    net = network()
    tokens = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(1))
    whole = net(tokens)
    steps = TokenByToken(net, 3)
    for n in range(16):
        assert (steps.logits_of_next() - whole[:, n]).abs().max() < 1e-12
        steps.put(tokens[:, n])


def test_bits_per_dim_is_the_sum_over_pixels_and_sums_to_one() -> None:
    net = network()
    levels = torch.randint(0, 256, (2, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    logits = net(levels.flatten(1))
    by_hand = -F.log_softmax(logits, 2).gather(2, levels.flatten(1)[..., None]).sum((1, 2)) / math.log(2) / 16
    found = TrainedImageGpt(net).bits_per_dim((levels.double() / 127.5 - 1).expand(-1, 3, -1, -1))
    assert (found - by_hand).abs().max() < 1e-10
    first = ImageGptConfig(size=1, width=12, layers=1, heads=3)
    every = (torch.arange(256).view(256, 1, 1, 1) / 127.5 - 1).expand(-1, 3, -1, -1)
    assert float((2.0 ** -TrainedImageGpt(network(first)).bits_per_dim(every)).sum()) == pytest.approx(1, abs=1e-12)


def test_a_sample_is_a_function_of_its_seed_alone() -> None:
    model = TrainedImageGpt(network().float())
    together = model.sample([5, 6, 7])
    assert together.shape == (3, 3, 4, 4)
    assert torch.equal(model.sample([6])[0], together[1])
    levels = (together + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4


def test_clusters_are_found_in_the_data_and_named_in_the_file(grey: PictureSet) -> None:
    config = ImageGptConfig(size=8, clusters=4, width=8, layers=1, heads=2)
    objective = ImageGptObjective(ImageGpt(config), grey, seed=0, device="cpu")
    palette = objective.network.palette
    assert palette.shape == (4, 1) and bool((palette.diff(dim=0) > 0).all())
    assert float(palette[0]) == pytest.approx(-1)  # black, by far the most frequent
    again = ImageGptObjective(ImageGpt(config), grey, seed=0, device="cpu")
    assert torch.equal(again.network.palette, palette)
    images = grey.images(range(6))[:, :1]
    tokens = tokens_of(objective.network, images)
    assert (palette[tokens].view(6, 1, 8, 8) - images).abs().max() < 0.3
    model = TrainedImageGpt(objective.network)
    assert model.likelihood(grey.pictures[:2], seed=0) == []
    assert set(model.sample([0]).unique().tolist()) <= set(palette.flatten().tolist())


def test_k_means_finds_separate_groups_and_weighs_them() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-0.9, -0.9, -0.9], [0.0, 0.1, 0.2], [0.9, 0.5, 0.9]], dtype=torch.float64)
    values = (centres[:, None] + 0.01 * torch.randn(3, 50, 3, generator=generator)).flatten(0, 1)
    weights = torch.randint(1, 20, (150,), generator=generator)
    found = k_means(values, weights, 3, generator=generator)
    parts, mass = values.view(3, 50, 3), weights.view(3, 50, 1).double()
    assert (found - (parts * mass).sum(1) / mass.sum(1)).abs().max() < 1e-12
    assert assign(values, found).tolist() == [0] * 50 + [1] * 50 + [2] * 50


def test_equal_colours_are_counted_and_too_few_refused() -> None:
    pictures = torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8).expand(3, 3, 2, 2)
    values, weights = colours(pictures, 3, torch.Generator())
    assert values.tolist() == [[-1, -1, -1], [1, 1, 1]] and weights.tolist() == [3, 9]
    with pytest.raises(DataError, match="2 different colours, fewer than 3 clusters"):
        k_means(values, weights, 3, generator=torch.Generator())


def test_colour_needs_clusters() -> None:
    with pytest.raises(ValueError, match=r"clusters null: pixels of 3 channels have 2\^24 values"):
        ImageGptConfig(channels=3)
    with pytest.raises(ValueError, match="width 10 cannot be divided into 4 heads"):
        ImageGptConfig(width=10)
