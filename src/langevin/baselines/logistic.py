"""The discretised mixture of logistic distributions over pixels (Salimans et al. 2017, sections 2.1 and 2.2).

A pixel's channels share the mixture's component. Of each component channel c is logistic with the mean
`m_c + sum over d < c of a_cd x_d`, linear in the channels before it; its probability is the mass of the level's bin,
2/255 wide, the outer bins reaching to infinity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_LOG_SCALE = -7.0
"""Logarithm of the smallest scale: a ninth of a level's width."""
_HALF_BIN = 1 / 255


class Mixture(NamedTuple):
    """The parameters of K components for C channels at each pixel."""

    logits: Tensor
    """B K H W, of the components' probabilities."""
    means: Tensor
    """B C K H W."""
    log_scales: Tensor
    """B C K H W, at least `LEAST_LOG_SCALE`."""
    coefficients: Tensor
    """B C(C-1)/2 K H W in (-1, 1): a_10, a_20, a_21, ..."""


def parameter_count(channels: int, components: int) -> int:
    """How many numbers describe the mixture of one pixel."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def split(parameters: Tensor, channels: int) -> Mixture:
    """B P H W, as a network gives them, to a mixture; P is `parameter_count`."""
    pairs = channels * (channels - 1) // 2
    parts = parameters.unflatten(1, (1 + 2 * channels + pairs, -1))  # B 1+2C+pairs K H W
    logits, means, log_scales, coefficients = parts.split([1, channels, channels, pairs], 1)
    return Mixture(logits[:, 0], means, log_scales.clamp(min=LEAST_LOG_SCALE), torch.tanh(coefficients))


def conditional_means(mixture: Mixture, x: Tensor) -> Tensor:
    """B C K H W: the means of each channel given the channels before it in x, B C H W."""
    means, pair = [], 0
    for c in range(x.shape[1]):
        mean = mixture.means[:, c]
        for d in range(c):
            mean = mean + mixture.coefficients[:, pair] * x[:, d, None]
            pair += 1
        means.append(mean)
    return torch.stack(means, 1)


def log_probability(mixture: Mixture, x: Tensor) -> Tensor:
    """log P(x), nats of each pixel with all its channels: B H W. x: B C H W on the 256 levels of [-1, 1].

    With a and b the bin's bounds in units of the scale, sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b)):
    a product, in which nothing cancels, so that no approximation is needed in the tails.
    """
    centred = x[:, :, None] - conditional_means(mixture, x)  # B C K H W
    inverse = torch.exp(-mixture.log_scales)
    below = F.logsigmoid(inverse * (centred + _HALF_BIN))
    above = F.logsigmoid(-inverse * (centred - _HALF_BIN))
    within = below + above + torch.log(-torch.expm1(-2 * _HALF_BIN * inverse))
    level = x[:, :, None]
    # Half a bin from the ends: the levels themselves are not exact in floating point.
    per_channel = torch.where(level < -1 + _HALF_BIN, below, torch.where(level > 1 - _HALF_BIN, above, within))
    return torch.logsumexp(F.log_softmax(mixture.logits, 1) + per_channel.sum(1), 1)


def draw(mixture: Mixture, uniform: Tensor) -> Tensor:
    """A sample of one pixel for each image: B C, on the 256 levels of [-1, 1], in the dtype of the mixture.

    mixture: with H = W = 1. uniform: B 1+C in [0, 1): for the component, then for each channel.
    """
    chances = F.softmax(mixture.logits[:, :, 0, 0].double(), 1)  # B K
    chosen = (chances.cumsum(1) <= uniform[:, :1]).sum(1).clamp(max=chances.shape[1] - 1)  # B
    rows = torch.arange(len(chosen), device=chosen.device)
    means, log_scales, coefficients = (
        part[rows, :, chosen, 0, 0].double() for part in (mixture.means, mixture.log_scales, mixture.coefficients)
    )  # B C, B C, B pairs
    u = uniform[:, 1:].double().clamp(min=2**-60)
    noise = torch.log(u) - torch.log1p(-u)
    drawn: list[Tensor] = []
    pair = 0
    for c in range(means.shape[1]):
        mean = means[:, c]
        for before in drawn:
            mean = mean + coefficients[:, pair] * before
            pair += 1
        value = mean + log_scales[:, c].exp() * noise[:, c]
        # To the nearest level, so that what is drawn has just the probability that `log_probability` gives it.
        drawn.append(((value.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1)
    return torch.stack(drawn, 1).to(mixture.means.dtype)
