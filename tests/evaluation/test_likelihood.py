"""Against the papers' formulae in variance-preserving coordinates, and on data whose likelihood is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import DataError, RequestError
from langevin.evaluation.likelihood import bits_per_dim, dequantised, ode_log_likelihood, variational_bound
from langevin.evaluation.selftest.problems import Gaussian, Mixture
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.unet import UNet, UNetConfig

SHAPE = (2, 3, 4)


def noise64(*seeds: int, shape: tuple[int, ...] = SHAPE) -> Noise:
    return Noise(seeds, shape, dtype=torch.float64)


def pixels(std: float, *seeds: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """8-bit pixels in [-1, 1]: a Gaussian, rounded to the levels."""
    x = 0.1 + std * noise64(*seeds, shape=shape).initial()
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def wavy(x: Tensor, sigma: float) -> Estimate:
    """Nobody's posterior mean, with a fraction that varies."""
    shrunk = x / (1 + sigma**2) ** 0.5
    return Estimate(torch.tanh(shrunk + 0.1), torch.sigmoid(2 * shrunk + sigma))


def tiny_network(seed: int) -> DiffusionModel:
    """A pixel U-Net with learned variance, random weights, float32."""
    torch.manual_seed(seed)
    config = UNetConfig(
        in_channels=2,
        out_channels=4,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(False, True),
        num_heads=2,
        context_channels=None,
    )
    network = UNet(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return DiffusionModel(network, NoiseSchedule.linear(6, 1e-2, 0.5), Prediction.EPSILON, learned_variance=True)


def grid(low: float, high: float, steps: int) -> Tensor:
    return torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)


# -- variational bound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_every_term_is_that_of_the_papers(variance: str) -> None:
    """Ho et al. 2020, equations 6, 7 and 13, on z, with torch's own divergence and scipy's distribution function."""
    schedule = NoiseSchedule.linear(12, 1e-3, 0.4)
    x0 = pixels(0.6, 3, 4)
    x0[0, 0, 0, 0], x0[1, 0, 0, 0] = -1, 1  # the open bins
    found = variational_bound(wavy, x0, schedule, noise64(3, 4), variance=variance)
    beta, abar = schedule.betas, schedule.abar
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    posterior = beta * (1 - before) / (1 - abar)
    clipped = torch.cat([posterior[1:2], posterior[1:]])
    large = torch.cat([posterior[1:2], beta[1:]]) if variance == "fixed_large" else beta
    noise = noise64(3, 4)
    for t in range(12):
        z = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * noise.step()
        x0_hat, fraction = wavy(z / abar[t].sqrt(), float(schedule.sigmas[t]))
        assert fraction is not None
        match variance:
            case "fixed_small":
                v = clipped[t].expand_as(z)
            case "fixed_large":
                v = large[t].expand_as(z)
            case _:
                v = torch.exp(fraction * large[t].log() + (1 - fraction) * clipped[t].log())

        def mean(clean: Tensor, z: Tensor = z, t: int = t) -> Tensor:
            on_x0 = before[t].sqrt() * beta[t] / (1 - abar[t])
            return on_x0 * clean + (1 - beta[t]).sqrt() * (1 - before[t]) / (1 - abar[t]) * z

        if t == 0:
            model = stats.norm(mean(x0_hat).numpy(), v.sqrt().numpy())
            upper = np.where(x0.numpy() == 1, np.inf, x0.numpy() + 1 / 255)
            lower = np.where(x0.numpy() == -1, -np.inf, x0.numpy() - 1 / 255)
            nats = -torch.from_numpy(np.log(model.cdf(upper) - model.cdf(lower)))
        else:
            nats = kl_divergence(Normal(mean(x0), posterior[t].sqrt()), Normal(mean(x0_hat), v.sqrt()))
        assert torch.allclose(found.terms[:, t], nats.mean((1, 2, 3)) / math.log(2), rtol=1e-7), t
    last = kl_divergence(Normal(abar[-1].sqrt() * x0, (1 - abar[-1]).sqrt()), Normal(torch.zeros(()), torch.ones(())))
    assert torch.allclose(found.prior, last.mean((1, 2, 3)) / math.log(2), rtol=1e-7)
    assert torch.allclose(found.total, found.terms.sum(1) + found.prior)


def test_the_bound_of_a_perfect_model_is_the_entropy_and_fixed_variances_cost_bits() -> None:
    """For Gaussian pixels with the true reverse variance every step is exact, so only the decoder can lose anything."""
    std, shape = 0.2, (1, 64, 64)
    data = Gaussian(0.1, std)
    x0 = pixels(std, 5, 6, shape=shape)
    inner = stats.norm(0.1, std)
    p = inner.cdf(x0.numpy() + 1 / 255) - inner.cdf(x0.numpy() - 1 / 255)
    bits = float(-np.log2(p).mean())

    def total(variance: str, every: int) -> float:
        schedule = NoiseSchedule.from_abar(NoiseSchedule.linear().abar[::every])
        levels = schedule.sigmas.tolist()
        below = dict(zip(levels[1:], levels, strict=False))

        def perfect(x: Tensor, sigma: float) -> Estimate:
            if sigma not in below:  # the decoder: 1 is beta, the true variance within 1 part in 400
                return data.denoise(x, sigma)._replace(variance_fraction=torch.ones_like(x))
            return data.denoise_with_variance(x, sigma, below[sigma])

        noise = noise64(5, 6, shape=shape)
        return float(variational_bound(perfect, x0, schedule, noise, variance=variance).total.mean())

    assert total("learned", 1) == pytest.approx(bits, abs=0.02)
    assert total("learned", 10) == pytest.approx(bits, abs=0.02)
    assert total("fixed_small", 10) > total("fixed_small", 1) > bits + 0.3
    assert bits + 0.02 < total("fixed_large", 1) < total("fixed_small", 1)


def test_far_tails_keep_their_bits() -> None:
    """A sure and wrong decoder: the log-probability is finite and grows with the square of the distance."""
    schedule = NoiseSchedule.linear(10, 1e-4, 0.02)
    x0 = torch.full((1, *SHAPE), 151 / 255, dtype=torch.float64)
    bits = [
        float(
            variational_bound(lambda x, s, m=m: Estimate(torch.full_like(x, m)), x0, schedule, noise64(1)).terms[0, 0]
        )
        for m in (-0.4, 0.1, 151 / 255 - 0.02, 151 / 255 + 0.02, 0.9)
    ]
    assert all(math.isfinite(b) for b in bits)
    assert bits[2] == pytest.approx(bits[3], rel=1e-9)
    assert bits[0] / bits[1] == pytest.approx(((151 / 255 + 0.4) / (151 / 255 - 0.1)) ** 2, rel=0.05)


def test_the_bound_says_what_is_wrong() -> None:
    schedule = NoiseSchedule.linear(10)
    data = Gaussian()
    with pytest.raises(DataError, match="256 levels"):
        variational_bound(data.denoise, torch.full((1, *SHAPE), 0.123), schedule, noise64(1))
    with pytest.raises(DataError, match="256 levels"):
        variational_bound(data.denoise, torch.full((1, *SHAPE), 3.0), schedule, noise64(1))
    with pytest.raises(RequestError, match="gives no variance"):
        variational_bound(data.denoise, pixels(0.5, 1), schedule, noise64(1), variance="learned")
    with pytest.raises(RequestError, match="one seed an image"):
        variational_bound(data.denoise, pixels(0.5, 1), schedule, noise64(1, 2))


def test_a_network_is_measured_image_by_image() -> None:
    """Float32, learned variance: an image's figures depend on its own seed, not on the batch."""
    model, shape = tiny_network(0), (2, 8, 8)
    x0 = pixels(0.4, 1, 2, shape=shape).float()

    def denoise(x: Tensor, sigma: float) -> Estimate:
        assert x.dtype == torch.float32
        return model.denoise(x, sigma, Conditioning())

    noise, second = Noise([1, 2], shape), Noise([2], shape)
    both = variational_bound(denoise, x0, model.schedule, noise, variance="learned")
    alone = variational_bound(denoise, x0[1:], model.schedule, second, variance="learned")
    assert both.terms.shape == (2, 6) and torch.isfinite(both.total).all()
    assert torch.allclose(both.terms[1:], alone.terms, rtol=1e-4)
    assert not torch.allclose(both.terms[1:], both.terms[:1], rtol=1e-2)
    levels = grid(0.05, 3, 6)
    density = ode_log_likelihood(denoise, x0, levels, noise.fresh(), probes=2)
    assert torch.isfinite(density).all()
    assert torch.allclose(density[1:], ode_log_likelihood(denoise, x0[1:], levels, second.fresh(), probes=2), rtol=1e-4)


# -- probability flow ---------------------------------------------------------------------------------------------


def correlated(width: int) -> tuple[Tensor, Tensor, Denoiser]:
    """Mean, covariance and denoiser of a Gaussian whose Jacobian has entries off the diagonal."""
    root = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = root @ root.T / width + 0.1 * torch.eye(width, dtype=torch.float64)
    mean = torch.linspace(-0.5, 0.5, width, dtype=torch.float64)

    def denoise(x: Tensor, sigma: float) -> Estimate:
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(width, dtype=torch.float64))
        return Estimate((mean + (x.flatten(1) - mean) @ gain.T).view_as(x))

    return mean, covariance, denoise


def test_gaussian_data_has_its_closed_form_to_second_order() -> None:
    data = Gaussian(0.0, 0.7)
    x = 0.7 * noise64(1, 2).initial()
    low, high = 0.01, 20.0
    exact = torch.from_numpy(stats.norm(0, math.hypot(0.7, low)).logpdf(x.numpy())).sum((1, 2, 3))
    errors = []
    for steps in (20, 40, 80):
        found = ode_log_likelihood(
            data.denoise, x, grid(low, high, steps), noise64(1, 2), prior_deviation=math.hypot(0.7, high)
        )
        errors.append(float((found - exact).abs().max()))
    assert errors[2] < 0.05
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.4)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.2)


def test_a_mixture_has_its_closed_form() -> None:
    data, low = Mixture(), 0.02
    x = data.quantile(torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64), low)
    density = sum(
        w * stats.norm(m, math.hypot(c, low)).pdf(x.numpy())
        for w, m, c in zip(data.weights, data.means, data.stds, strict=True)
    )
    exact = torch.from_numpy(np.log(density)).sum((1, 2, 3))
    found = ode_log_likelihood(data.denoise, x, grid(low, 200, 400), noise64(1, 2))
    assert torch.allclose(found, exact, atol=0.005)


def test_correlated_data_by_the_exact_trace_and_by_hutchinsons() -> None:
    width, low, high = 6, 0.05, 3000.0
    mean, covariance, denoise = correlated(width)
    shape = (1, 2, 3)
    x = noise64(*range(4), shape=shape).initial()
    truth = stats.multivariate_normal(mean.numpy(), covariance.numpy() + low**2 * np.eye(width))
    exact = torch.from_numpy(truth.logpdf(x.flatten(1).numpy()))
    few, many = (
        ode_log_likelihood(denoise, x, grid(low, high, n), noise64(*range(4), shape=shape), probes=None)
        for n in (150, 300)
    )
    assert torch.allclose(many, exact, atol=0.02)
    assert torch.allclose(many + (many - few) / 3, exact, atol=0.003)  # the order is 2, so this removes the error

    same = x[:1].expand(600, *shape)
    coarse = grid(low, high, 30)
    guessed = ode_log_likelihood(denoise, same, coarse, noise64(*range(600), shape=shape))
    target = ode_log_likelihood(denoise, x[:1], coarse, noise64(0, shape=shape), probes=None)
    assert guessed.std() > 0.3  # or there would be nothing to guess
    assert abs(guessed.mean() - target) < 3.5 * guessed.std() / math.sqrt(600)
    surer = ode_log_likelihood(denoise, same[:150], coarse, noise64(*range(150), shape=shape), probes=16)
    assert surer.std() == pytest.approx(float(guessed.std()) / 4, rel=0.25)


def test_bits_of_both_measurements_agree_with_the_levels() -> None:
    """Gaussian pixels: the ODE's bits per dimension of dequantised pixels are the levels' own bits."""
    std, shape, low = 0.3, (1, 32, 32), 0.002
    x0 = pixels(std, 7, 8, shape=shape)
    noise = noise64(7, 8, shape=shape)
    x = dequantised(x0, noise)
    moved = (x - x0) * 127.5
    assert -0.5 <= float(moved.min()) < -0.49 and 0.49 < float(moved.max()) <= 0.5
    found = ode_log_likelihood(Gaussian(0.1, std).denoise, x, grid(low, 50, 150), noise)
    inner = stats.norm(0.1, std)
    p = inner.cdf(x0.numpy() + 1 / 255) - inner.cdf(x0.numpy() - 1 / 255)
    expected = -np.log2(p).mean((1, 2, 3))
    assert bits_per_dim(found, 32 * 32).tolist() == pytest.approx(expected.tolist(), abs=0.003)


def test_the_ode_runs_in_inference_mode_and_leaves_no_graph() -> None:
    data = Gaussian(0.0, 1.0)
    x = noise64(1).initial()
    with torch.inference_mode():
        inside = ode_log_likelihood(data.denoise, x.clone(), grid(0.1, 10, 5), noise64(1))
    outside = ode_log_likelihood(data.denoise, x.requires_grad_(), grid(0.1, 10, 5), noise64(1))
    assert torch.equal(inside, outside) and not outside.requires_grad


def test_the_ode_says_what_is_wrong() -> None:
    data, x = Gaussian(), torch.zeros(1, *SHAPE, dtype=torch.float64)
    with pytest.raises(RequestError, match="end above 0"):
        ode_log_likelihood(data.denoise, x, torch.tensor([1.0, 0.5, 0.0]), noise64(1))
    with pytest.raises(RequestError, match="descend"):
        ode_log_likelihood(data.denoise, x, torch.tensor([0.5, 1.0]), noise64(1))
    with pytest.raises(RequestError, match="probes 0"):
        ode_log_likelihood(data.denoise, x, grid(0.1, 1, 2), noise64(1), probes=0)
    with pytest.raises(RequestError, match="prior_deviation -1"):
        ode_log_likelihood(data.denoise, x, grid(0.1, 1, 2), noise64(1), prior_deviation=-1)
    with pytest.raises(RequestError, match="one seed an image"):
        ode_log_likelihood(data.denoise, x, grid(0.1, 1, 2), noise64(1, 2))
    with pytest.raises(RequestError, match="gradients"):
        ode_log_likelihood(lambda x, s: Estimate(x.detach()), x, grid(0.1, 1, 2), noise64(1))
