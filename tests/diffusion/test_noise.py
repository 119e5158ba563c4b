from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.diffusion.noise import SEED_LIMIT, IntervalNoise, Noise
from langevin.errors import RequestError

SHAPE = (4, 6, 5)


def clock(sigma: float) -> float:
    return 1 / sigma**2


def level(leaf: int) -> float:
    """A noise level that needs no rounding."""
    return math.exp(-leaf / 2**16)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1, 2**32, 2**63, SEED_LIMIT - 1])
def test_the_first_noise_is_torch_randn_of_one_image(seed: int) -> None:
    expected = torch.randn(1, *SHAPE, generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(Noise([seed], SHAPE).initial(), expected)


def test_the_draws_of_the_steps_continue_the_same_stream() -> None:
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(1, *SHAPE, generator=generator) for _ in range(3)]
    noise = Noise([7], SHAPE)
    assert torch.equal(noise.initial(), draws[0])
    assert torch.equal(noise.step(), draws[1])
    assert torch.equal(noise.initial(), draws[0])
    assert torch.equal(noise.step(), draws[2])
    # Without the initial noise having been asked for, the steps are the same.
    assert torch.equal(Noise([7], SHAPE).step(), draws[1])


@pytest.mark.parametrize("interval", IntervalNoise)
def test_one_image_alone_is_that_image_in_any_batch(interval: IntervalNoise) -> None:
    batch = Noise([3, 11, 5, 8], SHAPE, interval=interval)
    alone, pair, turned = (
        batch.select(slice(2, 3)),
        batch.select(slice(1, 3)),
        Noise([8, 5, 11, 3], SHAPE, interval=interval),
    )
    assert (len(batch), len(alone), alone.seeds) == (4, 1, (5,))

    def draws(noise: Noise) -> list[torch.Tensor]:
        return [noise.initial(), noise.step(), noise.between(9.0, 2.0), noise.between(2.0, 0.1), noise.step()]

    for whole, one, two, other in zip(draws(batch), draws(alone), draws(pair), draws(turned), strict=True):
        assert torch.equal(whole[2:3], one)
        assert torch.equal(whole[1:3], two)
        assert torch.equal(whole[2], other[1])


def test_fresh_starts_every_stream_again() -> None:
    noise = Noise([1, 2], SHAPE)
    first = noise.step()
    assert torch.equal(noise.fresh().step(), first)


def test_dtype_changes_no_number() -> None:
    assert torch.equal(Noise([1], SHAPE, dtype=torch.float64).step().float(), Noise([1], SHAPE).step())
    wide = Noise([1], SHAPE, dtype=torch.float64).between(2.0, 1.0)
    assert wide.dtype == torch.float64
    assert torch.equal(wide.float(), Noise([1], SHAPE).between(2.0, 1.0))


@pytest.mark.parametrize("seed", [-1, SEED_LIMIT])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(RequestError, match=f"seed {seed} is out of range"):
        Noise([seed], SHAPE)
    with pytest.raises(RequestError, match="at least one seed"):
        Noise([], SHAPE)


# -- the Brownian path ----------------------------------------------------------------------------------------------

leaves = st.lists(st.integers(-4 * 2**16, 4 * 2**16), min_size=3, max_size=6, unique=True).map(sorted)


@given(leaves, st.integers(0, 2**64 - 1))
@settings(max_examples=40)
def test_parts_of_an_interval_add_up_to_it(cuts: list[int], seed: int) -> None:
    levels = [level(leaf) for leaf in cuts]
    noise = Noise([seed], SHAPE, dtype=torch.float64)
    length = [clock(b) - clock(a) for a, b in pairwise(levels)]
    parts = sum(math.sqrt(dt) * noise.between(a, b) for (a, b), dt in zip(pairwise(levels), length, strict=True))
    whole = noise.between(levels[0], levels[-1])
    torch.testing.assert_close(parts / math.sqrt(sum(length)), whole, rtol=0, atol=2e-5)


def test_the_path_does_not_depend_on_what_was_asked_before() -> None:
    asked, cold = Noise([9], SHAPE), Noise([9], SHAPE)
    for a, b in ((14.6, 3.3), (3.3, 0.7), (3.3, 3.2), (0.7, 0.02)):
        asked.between(a, b)
    assert torch.equal(asked.between(2.0, 1.0), cold.between(2.0, 1.0))


def test_intervals_are_standard_normal_and_disjoint_ones_independent() -> None:
    levels = [14.6, 9.0, 5.1, 2.0, 1.9, 0.3, 0.029]
    noise = Noise(range(40), (4, 16, 16))
    draws = [noise.between(a, b).flatten() for a, b in pairwise(levels)]
    draws += [noise.initial().flatten(), noise.step().flatten()]
    table = torch.stack(draws)  # 8 rows of 40,960 numbers: the deviations below are 5 standard errors
    n = table.shape[1]
    assert table.mean(1).abs().max() < 5 / math.sqrt(n)
    assert (table.var(1) - 1).abs().max() < 5 * math.sqrt(2 / n)
    assert ((table**4).mean(1) - 3).abs().max() < 5 * math.sqrt(96 / n)
    assert (torch.corrcoef(table) - torch.eye(len(draws))).abs().max() < 5 / math.sqrt(n)


def test_overlapping_intervals_correlate_as_the_path_says() -> None:
    noise = Noise(range(40), (4, 16, 16))
    part, whole = noise.between(5.0, 2.0).flatten(), noise.between(5.0, 1.0).flatten()
    expected = math.sqrt((clock(2.0) - clock(5.0)) / (clock(1.0) - clock(5.0)))
    assert float((part * whole).mean()) == pytest.approx(expected, abs=5 / math.sqrt(len(part)))


def test_stream_intervals_are_the_next_draws() -> None:
    noise, same = Noise([4], SHAPE, interval="stream"), Noise([4], SHAPE)
    assert torch.equal(noise.between(5.0, 1.0), same.step())
    assert torch.equal(noise.between(5.0, 1.0), same.step())


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.0, 2.0), (1.0, 1.0 - 1e-6), (1.0, 0.0), (1e9, 1.0)])
def test_intervals_without_a_length_or_outside_the_path_are_refused(a: float, b: float) -> None:
    with pytest.raises(RequestError, match="noise between"):
        Noise([1], SHAPE).between(a, b)


def test_draws_that_another_program_spends_are_passed_over() -> None:
    stream = torch.Generator().manual_seed(5)
    draws = torch.stack([torch.randn((1, *SHAPE), generator=stream)[0] for _ in range(6)])
    noise = Noise([5], SHAPE, skipped=(1, 2))
    for part in (noise, noise.select(slice(0, 1))):
        assert torch.equal(part.initial()[0], draws[1])
        assert torch.equal(part.step()[0], draws[4])
        assert torch.equal(part.step()[0], draws[5])
