"""Likelihood of a whole model on data of known density; reconstructions by the autoencoder."""

from __future__ import annotations

import math

import pytest
import torch
from tests.evaluation.gaussian_model import DEVIATION, gaussian_bundle

from langevin.errors import RequestError
from langevin.evaluation.pairs import likelihood_figures, reconstruction_figures
from langevin.evaluation.pictures import psnr, ssim
from langevin.model.bundle import ModelBundle


def gaussian_pictures(count: int, mean: float = 0.0) -> torch.Tensor:
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    x = (mean + DEVIATION * noise).clamp(-1, 1)
    return ((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)


def true_bits(pictures: torch.Tensor, mean: float = 0.0) -> float:
    x = pictures[:, :1].double() / 127.5 - 1
    density = torch.distributions.Normal(mean, DEVIATION).log_prob(x).mean()
    return float(-density / math.log(2) + math.log2(127.5))


def test_bits_of_an_exact_model_are_those_of_the_density() -> None:
    pictures = gaussian_pictures(24)
    bundle = gaussian_bundle(steps=200)
    flow, bound = likelihood_figures(bundle, pictures, [{}] * 24, seed=0, steps=60, batch=10)
    truth = true_bits(pictures)
    assert flow.name == "bits/dim (ODE)" and flow.value == pytest.approx(truth, abs=0.02)
    assert flow.settings["steps"] == 60 and flow.reference == 24 and flow.better == "lower"
    assert bound.name == "bits/dim (bound)" and truth - 0.02 < bound.value < truth + 0.4
    assert bound.settings == {"levels": 200, "variance": "fixed_large"}


def test_labels_are_told_and_pictures_do_not_depend_on_their_batch() -> None:
    pictures = torch.cat([gaussian_pictures(6, -0.3), gaussian_pictures(6, 0.4)])
    records = [{"label": 0}] * 6 + [{"label": 1}] * 6
    bundle = gaussian_bundle(means=(-0.3, 0.4), steps=300)
    right, _ = likelihood_figures(bundle, pictures, records, seed=0, steps=40, batch=5)
    truth = (true_bits(pictures[:6], -0.3) + true_bits(pictures[6:], 0.4)) / 2
    assert right.value == pytest.approx(truth, abs=0.03)
    swapped, _ = likelihood_figures(bundle, pictures, records[::-1], seed=0, steps=40, batch=12)
    assert swapped.value > right.value + 1
    whole, bound = likelihood_figures(bundle, pictures, records, seed=0, steps=40, batch=12)
    assert whole.value == pytest.approx(right.value, rel=1e-5) and bound.value < truth + 1
    with pytest.raises(RequestError, match="one of 2 classes, a record of the data has label 2"):
        likelihood_figures(bundle, pictures[:1], [{"label": 2}], seed=0)


def test_colour_is_not_lost_in_silence() -> None:
    colour = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8) * 50
    with pytest.raises(RequestError, match="the model has one channel, the pictures have colour"):
        likelihood_figures(gaussian_bundle(), colour, [{}], seed=0)


def test_a_model_of_latents_has_no_bits_and_one_of_pixels_no_reconstruction(tiny_bundle: ModelBundle) -> None:
    pictures = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(RequestError, match="works on latents"):
        likelihood_figures(tiny_bundle, pictures, [{}], seed=0)
    with pytest.raises(RequestError, match="works on pixels and has no autoencoder"):
        reconstruction_figures(gaussian_bundle(), pictures)
    with pytest.raises(RequestError, match="34 x 34 pixels: the autoencoder takes multiples of 4"):
        reconstruction_figures(tiny_bundle, torch.zeros(1, 3, 34, 34, dtype=torch.uint8))


@torch.no_grad()
def test_reconstructions_are_of_the_latents_mean(tiny_bundle: ModelBundle) -> None:
    pictures = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    figures = {f.name: f for f in reconstruction_figures(tiny_bundle, pictures, batch=2)}
    original = pictures.float() / 127.5 - 1
    codec = tiny_bundle.autoencoder
    assert codec is not None
    copy = codec.decode(codec.encode(original)).clamp(-1, 1)
    assert figures["psnr"].value == pytest.approx(float(psnr(original, copy).mean()), rel=1e-4)
    assert figures["ssim"].value == pytest.approx(float(ssim(original, copy).mean()), rel=1e-3)
    assert figures["psnr"].reference == 5 and figures["psnr"].deviation is not None
