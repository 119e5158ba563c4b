"""Local editing: where the words are, and that nothing else is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from langevin.diffusion.core import Estimate
from langevin.diffusion.noise import Noise
from langevin.model import local_blend
from langevin.model.local_blend import LocalBlend, attention_to, places


def test_attention_is_read_at_the_authors_resolution() -> None:
    """Of a latent of 32 x 24: layers of 16 x 12, not the finer or coarser ones; each by its own words."""
    maps = [torch.rand(3, n, 5) for n in (32 * 24, 16 * 12, 16 * 12, 8 * 6)]
    maps.append(torch.full((3, 16 * 12, 5), torch.nan))
    found = attention_to(maps, ([1], [2, 3]), 32, 24)
    mean = (maps[1] + maps[2]) / 2
    assert found.shape == (2, 1, 16, 12)
    torch.testing.assert_close(found[0, 0].flatten(), mean[0, :, 1])
    torch.testing.assert_close(found[1, 0].flatten(), mean[1, :, 2] + mean[1, :, 3])
    assert attention_to([torch.rand(2, 18 * 17, 2)], ([0], [0]), 18, 17).shape == (2, 1, 18, 17)  # there is no coarser


def test_places_are_those_of_either_text_and_their_neighbours() -> None:
    attention = torch.zeros(2, 1, 8, 8)
    attention[0, 0, 1, 1], attention[0, 0, 1, 6] = 10.0, 2.0  # the second is below a share of 0.3
    attention[1, 0, 6, 6] = 0.1  # each is measured by its own highest
    mask = places(attention, 0.3, 8, 8)
    wanted = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    wanted[..., 0:3, 0:3] = wanted[..., 5:8, 5:8] = True
    assert torch.equal(mask, wanted)
    assert places(attention, 0.3, 16, 16).shape == (1, 1, 16, 16)
    assert not places(torch.zeros(2, 1, 8, 8), 0.0, 8, 8).any()


def test_outside_the_words_every_state_is_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    attended = torch.zeros(2, 64, 3)
    attended[:, :8, 1] = 1.0  # the first row

    @contextmanager
    def watched() -> Iterator[list[Tensor]]:
        yield [attended]

    monkeypatch.setattr(local_blend, "watched", watched)
    sigmas = torch.tensor([9.0, 5.0, 3.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    states = [torch.randn(1, 4, 8, 8) for _ in sigmas]
    blend = LocalBlend(states, [1], [1])
    steps = list(blend(lambda x, s: Estimate(x / 2), states[0], sigmas, Noise([0], (4, 8, 8))))
    assert len(steps) == 5
    for step in steps[1:]:
        assert torch.equal(step.x[..., 2:, :], states[step.index + 1][..., 2:, :])
        assert not torch.equal(step.x[..., :2, :], states[step.index + 1][..., :2, :])
    assert not torch.equal(steps[0].x[..., 2:, :], states[1][..., 2:, :])  # attention is not settled yet
