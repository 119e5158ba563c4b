"""Probabilities of the 256 values: they sum to 1, and equal the formula wherever that can be evaluated."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from langevin.baselines.logistic import (
    LEAST_LOG_SCALE,
    Mixture,
    conditional_means,
    draw,
    log_probability,
    parameter_count,
    split,
)

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def random_parameters(channels: int, components: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, parameter_count(channels, components), 1, 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2 - 0.5


def marginal(mixture: Mixture, channels: int) -> Mixture:
    """Of the first channels alone."""
    pairs = channels * (channels - 1) // 2
    return Mixture(
        mixture.logits,
        mixture.means[:, :channels],
        mixture.log_scales[:, :channels],
        mixture.coefficients[:, :pairs],
    )


@given(seed=st.integers(0, 10**6), components=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_the_256_probabilities_sum_to_one(seed: int, components: int) -> None:
    mixture = split(random_parameters(1, components, seed), 1)
    everywhere = Mixture(*(part.expand(256, *part.shape[1:]) for part in mixture))
    total = log_probability(everywhere, LEVELS.view(256, 1, 1, 1)).exp().sum()
    assert abs(float(total) - 1) < 1e-12


@given(seed=st.integers(0, 10**6), before=st.tuples(st.integers(0, 255), st.integers(0, 255)))
@settings(max_examples=20, deadline=None)
def test_summed_over_a_channel_they_are_the_channels_before_it(seed: int, before: tuple[int, int]) -> None:
    mixture = split(random_parameters(3, 4, seed), 3)
    everywhere = Mixture(*(part.expand(256, *part.shape[1:]) for part in mixture))
    for channels in (3, 2):
        known = torch.stack([LEVELS[b] for b in before[: channels - 1]]).expand(256, -1)
        x = torch.cat([known, LEVELS[:, None]], 1)[..., None, None]
        total = torch.logsumexp(log_probability(marginal(everywhere, channels), x), 0)
        fewer = log_probability(marginal(mixture, channels - 1), x[:1, : channels - 1])[0]
        assert torch.allclose(total, fewer, rtol=0, atol=1e-10)


def exact(mixture: Mixture, x: list[int], digits: int = 1000) -> float:
    """ln P of one pixel from the distribution function itself. The difference of two numbers near 1 needs digits."""
    with mpmath.workdps(digits):
        total = mpmath.mpf(0)
        logits = [mpmath.mpf(float(v)) for v in mixture.logits[0, :, 0, 0]]
        norm = sum(mpmath.exp(v) for v in logits)
        for k, logit in enumerate(logits):
            product = mpmath.exp(logit) / norm
            pair = 0
            for c, level in enumerate(x):
                mean = mpmath.mpf(float(mixture.means[0, c, k, 0, 0]))
                for d in range(c):
                    value = mpmath.mpf(x[d]) / mpmath.mpf("127.5") - 1
                    mean += mpmath.mpf(float(mixture.coefficients[0, pair, k, 0, 0])) * value
                    pair += 1
                scale = mpmath.exp(mpmath.mpf(float(mixture.log_scales[0, c, k, 0, 0])))
                low, high = (
                    1 / (1 + mpmath.exp(-((level + half) / mpmath.mpf("127.5") - 1 - mean) / scale))
                    for half in (mpmath.mpf("-0.5"), mpmath.mpf("0.5"))
                )
                product *= (1 if level == 255 else high) - (0 if level == 0 else low)
            total += product
        return float(mpmath.log(total))


@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([1, 3]),
    x=st.tuples(*[st.sampled_from([0, 1, 17, 128, 254, 255])] * 3),
)
@settings(max_examples=40, deadline=None)
def test_each_probability_is_the_formula_s(seed: int, channels: int, x: tuple[int, int, int]) -> None:
    mixture = split(random_parameters(channels, 3, seed), channels)
    levels = list(x[:channels])
    found = log_probability(mixture, LEVELS[torch.tensor(levels)].view(1, channels, 1, 1))
    assert float(found) == pytest.approx(exact(mixture, levels), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("log_scale", [LEAST_LOG_SCALE, -20.0])
@pytest.mark.parametrize("level", [0, 3, 200, 255])
def test_far_tails_keep_their_digits(log_scale: float, level: int) -> None:
    parameters = torch.tensor([0.0, -0.9, log_scale], dtype=torch.float64).view(1, 3, 1, 1)
    mixture = split(parameters, 1)
    assert float(mixture.log_scales) == LEAST_LOG_SCALE
    found = float(log_probability(mixture, LEVELS[level].view(1, 1, 1, 1)))
    assert found == pytest.approx(exact(mixture, [level]), rel=1e-10)
    assert log_probability(Mixture(*(p.float() for p in mixture)), LEVELS[level].float().view(1, 1, 1, 1)).isfinite()


def test_the_gradient_is_finite_at_both_ends_and_in_the_tails() -> None:
    parameters = torch.tensor([0.0, -0.9, -7.0]).view(1, 3, 1, 1).expand(256, 3, 1, 1).clone().requires_grad_()
    log_probability(split(parameters, 1), LEVELS.float().view(256, 1, 1, 1)).sum().backward()
    assert parameters.grad is not None and parameters.grad.isfinite().all()


def test_draws_have_the_probabilities() -> None:
    """Even uniform numbers: the shares of the levels are then the probabilities to 1 / their number."""
    mixture = split(random_parameters(1, 1, seed=4), 1)
    count = 20000
    u = torch.stack([torch.full((count,), 0.5), (torch.arange(count) + 0.5) / count], 1).double()
    many = Mixture(*(part.expand(count, *part.shape[1:]) for part in mixture))
    drawn = draw(many, u)
    shares = torch.bincount(((drawn[:, 0] + 1) * 127.5).round().long(), minlength=256) / count
    everywhere = Mixture(*(part.expand(256, *part.shape[1:]) for part in mixture))
    chances = log_probability(everywhere, LEVELS.view(256, 1, 1, 1)).exp().flatten()
    assert (shares - chances).abs().max() < 1.01 / count


def test_components_and_later_channels_are_drawn_as_they_are_weighed() -> None:
    mixture = split(random_parameters(3, 2, seed=9), 3)
    narrow = mixture._replace(log_scales=torch.full_like(mixture.log_scales, LEAST_LOG_SCALE), means=mixture.means / 9)
    first = float(torch.softmax(narrow.logits.flatten(), 0)[0])
    for u, component in ((first - 1e-6, 0), (first + 1e-6, 1)):
        drawn = draw(narrow, torch.tensor([[u, 0.5, 0.5, 0.5]], dtype=torch.float64))
        means = conditional_means(narrow, drawn[..., None, None])[0, :, component, 0, 0]
        # The median of each is its conditional mean, brought to the nearest level.
        assert (drawn[0] - means.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-12
    assert math.isclose(float(mixture.coefficients.abs().max()), float(mixture.coefficients.abs().max().clamp(max=1)))
