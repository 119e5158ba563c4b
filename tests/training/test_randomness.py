from __future__ import annotations

import pytest
import torch

from langevin.training.randomness import SampleOrder, epoch_order, generator


def test_streams_depend_on_seed_and_purpose_alone() -> None:
    def draw(*purpose: str | int) -> float:
        return float(torch.rand((), generator=generator(*purpose)))  # type: ignore[arg-type]

    assert draw(0, "noise", 1) == draw(0, "noise", 1)
    assert len({draw(s, p, i) for s in (0, 1) for p in ("noise", "order") for i in range(50)}) == 200


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    first, second = epoch_order(0, 0, 100), epoch_order(0, 1, 100)
    assert sorted(first.tolist()) == list(range(100)) == sorted(second.tolist())
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (3, 8)])
def test_batches_follow_the_epochs_whatever_step_is_asked_first(count: int, size: int) -> None:
    steps = 12
    forward = [SampleOrder(5, count).batch(i, size) for i in range(steps)]
    one = SampleOrder(5, count)
    assert [one.batch(i, size) for i in reversed(range(steps))] == forward[::-1]
    flat = [pair for batch in forward for pair in batch]
    for epoch in range(len(flat) // count):
        part = flat[epoch * count : (epoch + 1) * count]
        assert {e for e, _ in part} == {epoch}
        assert sorted(i for _, i in part) == list(range(count))
