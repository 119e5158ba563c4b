from __future__ import annotations

import math

import pytest
import torch
from tests.diffusion.known_denoisers import SHAPE, gaussian, noise64, wavy
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.guidance import (
    classifier_guided,
    clipped,
    combine,
    combine_in,
    dynamically_thresholded,
    guided,
    keep_known,
    limited,
    switch_at,
)
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError


def constant(value: float, calls: list[float] | None = None) -> Denoiser:
    def denoise(x: Tensor, sigma: float) -> Estimate:
        if calls is not None:
            calls.append(sigma)
        return Estimate(torch.full_like(x, value), torch.full_like(x, value))

    return denoise


X = noise64().initial()


def test_combine_is_linear_and_exact_at_0_and_1() -> None:
    noise = noise64()
    cond, uncond = noise.initial(), noise.step()
    assert torch.equal(combine(cond, uncond, 1.0), cond)
    assert torch.equal(combine(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(combine(cond, uncond, 7.5), uncond + 7.5 * (cond - uncond), rtol=1e-13, atol=1e-13)


def test_rescale_restores_the_deviation_of_each_image() -> None:
    noise = noise64()
    cond, uncond = noise.initial(), noise.step()
    full = combine(cond, uncond, 7.5, rescale=1.0)
    torch.testing.assert_close(full.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-12, atol=0)
    half = combine(cond, uncond, 7.5, rescale=0.5)
    torch.testing.assert_close(half, (full + combine(cond, uncond, 7.5)) / 2, rtol=1e-12, atol=1e-12)
    # One image of the batch does not change the other.
    torch.testing.assert_close(combine(cond[:1], uncond[:1], 7.5, 0.7), combine(cond, uncond, 7.5, 0.7)[:1])


def test_rescale_in_epsilon_is_that_of_the_raw_outputs() -> None:
    noise = noise64()
    x, cond, uncond, sigma = 3 * noise.initial(), noise.step(), noise.step(), 3.0
    got = combine_in(Prediction.EPSILON, cond, uncond, x, sigma, 5.0, 0.7)
    eps = combine((x - cond) / sigma, (x - uncond) / sigma, 5.0, 0.7)
    torch.testing.assert_close(got, x - sigma * eps, rtol=1e-12, atol=1e-12)


def test_rescale_leaves_an_image_without_deviation_as_it_is() -> None:
    cond, uncond = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.25)
    cond[1] = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed = combine(cond, uncond, 3.0, rescale=0.7)
    assert torch.equal(mixed[0], combine(cond, uncond, 3.0)[0])
    assert torch.equal(mixed[1:], combine(cond[1:], uncond[1:], 3.0, rescale=0.7))


@pytest.mark.parametrize("rescale", [-0.1, 1.1, math.nan])
def test_rescale_out_of_range_is_refused(rescale: float) -> None:
    with pytest.raises(RequestError, match="rescale"):
        combine(X, X, 2.0, rescale)


def test_guided_calls_both_inside_its_interval_only() -> None:
    cond_calls: list[float] = []
    uncond_calls: list[float] = []
    denoiser = guided(constant(1.0, cond_calls), constant(0.0, uncond_calls), 3.0, interval=(0.5, 4.0))
    values = [float(denoiser(X, sigma).x0.mean()) for sigma in (5.0, 4.0, 1.0, 0.5, 0.1)]
    assert values == [1.0, 3.0, 3.0, 1.0, 1.0]  # low < sigma <= high
    assert cond_calls == [5.0, 4.0, 1.0, 0.5, 0.1]
    assert uncond_calls == [4.0, 1.0]
    assert float(denoiser(X, 1.0).variance_fraction.mean()) == 1.0  # that of cond


def test_scale_1_is_the_conditional_denoiser_itself() -> None:
    uncond_calls: list[float] = []
    assert guided(wavy, constant(0.0, uncond_calls), 1.0)(X, 2.0).x0.equal(wavy(X, 2.0).x0)
    assert uncond_calls == []


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(RequestError, match="interval 3 to 1 is empty"):
        limited(wavy, wavy, 3.0, 1.0)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_classifier_guidance_moves_a_gaussian_as_bayes_does(off: type) -> None:
    """Data N(0.3, 0.7^2), label density N(y; x0, 0.5^2) given x0: both posteriors of x0 are known in closed form."""
    mean, deviation, y, width, sigma = 0.3, 0.7, 1.1, 0.5, 0.8

    def log_probability(x: Tensor, sigma: float) -> Tensor:
        # y given x: mean D(x), variance that of x0 given x, plus width^2.
        d = gaussian(mean, deviation)(x, sigma).x0
        variance = deviation**2 * sigma**2 / (deviation**2 + sigma**2) + width**2
        return (-((y - d) ** 2) / (2 * variance)).sum((1, 2, 3))

    with off():
        x = sigma * X.clone()
        got = classifier_guided(gaussian(mean, deviation), log_probability)(x, sigma).x0
        precision = 1 / deviation**2 + 1 / sigma**2 + 1 / width**2
        exact = (mean / deviation**2 + x / sigma**2 + y / width**2) / precision
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
    twice = classifier_guided(gaussian(mean, deviation), log_probability, 2.0)(x, sigma).x0
    plain = gaussian(mean, deviation)(x, sigma).x0
    torch.testing.assert_close(twice - plain, 2 * (exact - plain), rtol=1e-11, atol=1e-11)


def test_clipping() -> None:
    x0 = clipped(lambda x, sigma: Estimate(3 * x), 0.5)(X, 1.0).x0
    assert float(x0.abs().max()) == 0.5
    assert torch.equal(x0, (3 * X).clamp(-0.5, 0.5))


def test_clipping_does_not_hide_what_is_not_finite() -> None:
    broken = torch.tensor([float("inf"), -float("inf"), float("nan"), 3.0])
    x0 = clipped(lambda x, sigma: Estimate(broken))(X, 1.0).x0
    assert torch.equal(x0.isfinite(), torch.tensor([False, False, False, True])) and x0[3] == 1


def test_dynamic_thresholding_is_imagens() -> None:
    big = torch.stack([X[0] * 4, X[0] * 0.01])  # the second image lies inside [-1, 1]
    got = dynamically_thresholded(lambda x, sigma: Estimate(x), percentile=0.9)(big, 1.0).x0
    s = torch.quantile(big[0].abs(), 0.9)
    assert s > 1
    torch.testing.assert_close(got[0], big[0].clamp(-s, s) / s, rtol=1e-13, atol=1e-13)
    assert float(got[0].abs().max()) == pytest.approx(1.0, rel=1e-14)
    assert torch.equal(got[1], big[1])
    with pytest.raises(RequestError, match=r"percentile 1\.5"):
        dynamically_thresholded(wavy, 1.5)


def test_switch_at_thresholds() -> None:
    denoiser = switch_at(constant(0.0), (5.0, constant(1.0)), (2.0, constant(2.0)))
    assert [float(denoiser(X, s).x0.mean()) for s in (9.0, 5.0001, 5.0, 2.1, 2.0, 0.1)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(RequestError, match="out of order"):
        switch_at(wavy, (2.0, wavy), (5.0, wavy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_known_pixels_are_kept_bit_for_bit(dtype: torch.dtype) -> None:
    known = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    known[0, 0, 0, 0] = 1e-30
    mask = torch.zeros(2, 1, *SHAPE[1:], dtype=dtype)
    mask[:, :, 1:] = 1
    x0 = keep_known(constant(1e6), known, mask)(X.float(), 1.0).x0
    assert torch.equal(x0[:, :, :1], known[:, :, :1])
    assert (x0[:, :, 1:] == 1e6).all()


def test_a_soft_mask_blends() -> None:
    known = torch.zeros(1, *SHAPE)
    x0 = keep_known(constant(2.0), known, torch.full((1, 1, 1, 1), 0.25))(known, 1.0).x0
    assert torch.equal(x0, torch.full_like(known, 0.5))
