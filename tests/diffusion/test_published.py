"""The samplers against the papers' own formulae, in the papers' own variance-preserving coordinates, at float64.

Nothing here uses sigma: z = sqrt(abar) x0 + sqrt(1 - abar) eps, abar from the betas, steps from t to s < t.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tests.diffusion.known_denoisers import noise64
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.grids import make_grid
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS, final
from langevin.diffusion.schedule import NoiseSchedule

T = 50
BETAS = torch.linspace(1e-3, 0.3, T, dtype=torch.float64)
SCHEDULE = NoiseSchedule.from_betas(BETAS)
ABAR = torch.cumprod(1 - BETAS, 0)
BOUND = 1e-10


def network(z: Tensor, t: int) -> Tensor:
    """Some epsilon network: smooth, not linear, not the same at any two timesteps."""
    return torch.tanh(z) + 0.3 * torch.cos(2 * z + 0.1 * t) - 0.1


def fraction(z: Tensor, t: int) -> Tensor:
    return torch.sigmoid(z + 0.02 * t)


def denoiser() -> Denoiser:
    """`network` behind the seam, as a model of ours would be."""

    def denoise(x: Tensor, sigma: float) -> Estimate:
        t = round(float(SCHEDULE.t(sigma)))
        z = x / math.sqrt(1 + sigma**2)
        return Estimate(x - sigma * network(z, t), fraction(z, t))

    return denoise


def start() -> tuple[Tensor, Noise]:
    noise = noise64(5, 6)
    return noise.initial(), noise


def ours(name: str, timesteps: list[int], **options: object) -> Tensor:
    """Our sampler over the timesteps and to 0, from the same z_T."""
    z, noise = start()
    sigmas = torch.cat([SCHEDULE.sigmas[timesteps], SCHEDULE.sigmas.new_zeros(1)])
    x = z * math.sqrt(1 + float(sigmas[0]) ** 2)
    return final(SAMPLERS[name].run(denoiser(), x, sigmas, noise, **options))


CHAINS = {"all steps": list(range(T - 1, -1, -1)), "shortened": [49, 40, 33, 21, 14, 6, 2]}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_ddpm(chain: str, variance: str) -> None:
    """Ho et al. 2020, equations 7 and 15; Nichol & Dhariwal 2021, equations 15 and 19 (betas of a shortened chain)."""
    timesteps = CHAINS[chain]
    z, noise = start()
    for t, s in zip(timesteps, [*timesteps[1:], None], strict=True):
        abar, abar_s = ABAR[t], torch.tensor(1.0, dtype=torch.float64) if s is None else ABAR[s]
        beta = 1 - abar / abar_s
        x0 = (z - torch.sqrt(1 - abar) * network(z, t)) / torch.sqrt(abar)
        mean = torch.sqrt(abar_s) * beta / (1 - abar) * x0 + torch.sqrt(1 - beta) * (1 - abar_s) / (1 - abar) * z
        beta_tilde = (1 - abar_s) / (1 - abar) * beta
        if s is None:
            z = mean
            continue
        v = fraction(z, t)
        log_variance = {
            "fixed_small": torch.log(beta_tilde),
            "fixed_large": torch.log(beta),
            "learned": v * torch.log(beta) + (1 - v) * torch.log(beta_tilde),
        }[variance]
        z = mean + torch.exp(log_variance / 2) * noise.step()
    assert float((ours("ddpm", timesteps, variance=variance) - z).abs().max()) < BOUND


def test_ddpm_mean_from_epsilon_is_algorithm_2() -> None:
    """Ho et al. 2020, algorithm 2, line 4, which never forms x0."""
    z, noise = start()
    for t in range(T - 1, -1, -1):
        z = (z - BETAS[t] / torch.sqrt(1 - ABAR[t]) * network(z, t)) / torch.sqrt(1 - BETAS[t])
        if t > 0:
            z = z + torch.sqrt(BETAS[t]) * noise.step()
    assert float((ours("ddpm", CHAINS["all steps"], variance="fixed_large") - z).abs().max()) < BOUND


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_ddim(chain: str, eta: float, name: str) -> None:
    """Song et al. 2021, equations 12 and 16."""
    timesteps = CHAINS[chain]
    z, noise = start()
    for t, s in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, a_s = ABAR[t], torch.tensor(1.0, dtype=torch.float64) if s is None else ABAR[s]
        eps = network(z, t)
        deviation = eta * torch.sqrt((1 - a_s) / (1 - a)) * torch.sqrt(1 - a / a_s)
        x0 = (z - torch.sqrt(1 - a) * eps) / torch.sqrt(a)
        z = torch.sqrt(a_s) * x0 + torch.sqrt(1 - a_s - deviation**2) * eps
        if s is not None and eta > 0:
            z = z + deviation * noise.step()
    assert float((ours(name, timesteps, eta=eta) - z).abs().max()) < BOUND


def test_ddim_inversion_is_euler_on_the_turned_grid() -> None:
    """Song et al. 2021, section 4.3: the same equation with the two timesteps exchanged; from the smallest level."""
    timesteps = list(range(0, T, 7))
    z = 0.5 * start()[0]
    x = z * torch.sqrt(1 + SCHEDULE.sigmas[0] ** 2)
    for t, s in pairwise(timesteps):
        a, a_s, eps = ABAR[t], ABAR[s], network(z, t)
        z = torch.sqrt(a_s) * (z - torch.sqrt(1 - a) * eps) / torch.sqrt(a) + torch.sqrt(1 - a_s) * eps
    got = final(SAMPLERS["euler"].run(denoiser(), x, SCHEDULE.sigmas[timesteps], noise64()))
    assert float((got * torch.sqrt(ABAR[timesteps[-1]]) - z).abs().max()) < BOUND


def _solver_quantities(timesteps: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma (of z) and lambda = log(alpha / sigma): Lu et al. 2022, section 2."""
    alpha, sigma = torch.sqrt(ABAR[timesteps]), torch.sqrt(1 - ABAR[timesteps])
    return alpha, sigma, torch.log(alpha / sigma)


def _x0(z: Tensor, t: int) -> Tensor:
    return (z - torch.sqrt(1 - ABAR[t]) * network(z, t)) / torch.sqrt(ABAR[t])


def test_dpmpp_2m() -> None:
    """Lu et al. 2022b, algorithm 2; the step to 0, which the paper leaves out, is x0."""
    timesteps = CHAINS["shortened"]
    alpha, sigma, lam = _solver_quantities(timesteps)
    z, _ = start()
    estimates: list[Tensor] = []
    for i, t in enumerate(timesteps):
        estimates.append(_x0(z, t))
        if i == len(timesteps) - 1:
            z = estimates[-1]
            break
        h = lam[i + 1] - lam[i]
        d = estimates[-1]
        if i > 0:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * (torch.exp(-h) - 1) * d
    assert float((ours("dpmpp_2m", timesteps) - z).abs().max()) < BOUND
    assert float((ours("dpmpp_2m_sde", timesteps, eta=0.0) - z).abs().max()) < BOUND


def test_sde_dpmpp_2m() -> None:
    """Lu et al. 2022b, SDE-DPM-Solver++(2M), with the noise of our path."""
    timesteps = CHAINS["shortened"]
    alpha, sigma, lam = _solver_quantities(timesteps)
    z, noise = start()
    estimates: list[Tensor] = []
    for i, t in enumerate(timesteps):
        estimates.append(_x0(z, t))
        if i == len(timesteps) - 1:
            z = estimates[-1]
            break
        h = lam[i + 1] - lam[i]
        z_next = sigma[i + 1] / sigma[i] * torch.exp(-h) * z + alpha[i + 1] * (1 - torch.exp(-2 * h)) * estimates[-1]
        if i > 0:
            r = (lam[i] - lam[i - 1]) / h
            z_next += alpha[i + 1] * (1 - torch.exp(-2 * h)) / (2 * r) * (estimates[-1] - estimates[-2])
        a, b = (float(SCHEDULE.sigmas[k]) for k in (t, timesteps[i + 1]))
        z = z_next + sigma[i + 1] * torch.sqrt(1 - torch.exp(-2 * h)) * noise.between(a, b)
    assert float((ours("dpmpp_2m_sde", timesteps) - z).abs().max()) < BOUND


@pytest.mark.parametrize("r", [0.3, 0.5, 1.0])
def test_dpmpp_2s_with_its_noise_off(r: float) -> None:
    """Lu et al. 2022b, algorithm 1, in x = z / alpha so that levels between the timesteps have a name."""

    def smooth(x: Tensor, sigma: float) -> Estimate:
        return Estimate(torch.tanh(x / (1 + sigma)))

    levels = [8.0, 3.0, 1.1, 0.4, 0.1]
    noise = noise64()
    x = start_x = 8.0 * noise.initial()
    for s, s1 in pairwise(levels):
        h = math.log(s / s1)
        middle = s * math.exp(-r * h)
        x0 = smooth(x, s).x0
        u = middle / s * x - math.expm1(-r * h) * x0
        d = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * smooth(u, middle).x0
        x = s1 / s * x - math.expm1(-h) * d
    grid = torch.tensor(levels, dtype=torch.float64)
    got = final(SAMPLERS["dpmpp_sde"].run(smooth, start_x, grid, noise, eta=0.0, r=r))
    assert float((got - x).abs().max()) < BOUND
    if r == 0.5:
        got = final(SAMPLERS["dpmpp_2s_ancestral"].run(smooth, start_x, grid, noise, eta=0.0))
        assert float((got - x).abs().max()) < BOUND


def test_edm_stochastic_sampler() -> None:
    """Karras et al. 2022, algorithm 2, line by line."""
    grid = make_grid("karras", SCHEDULE, 12)
    t = grid.tolist()
    s_churn, s_tmin, s_tmax, s_noise = 3.0, 0.1, 2.0, 1.003
    noise = noise64()
    x = start_x = t[0] * noise.initial()
    d_net = denoiser()
    for i in range(12):
        gamma = min(s_churn / 12, math.sqrt(2) - 1) if s_tmin <= t[i] <= s_tmax else 0.0
        t_hat = t[i] + gamma * t[i]
        if gamma > 0:
            x = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * noise.step()
        d = (x - d_net(x, t_hat).x0) / t_hat
        ahead = x + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_ahead = (ahead - d_net(ahead, t[i + 1]).x0) / t[i + 1]
            ahead = x + (t[i + 1] - t_hat) * (d / 2 + d_ahead / 2)
        x = ahead
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    got = final(SAMPLERS["heun"].run(d_net, start_x, grid, noise.fresh(), **options))
    assert float((got - x).abs().max()) < BOUND


def test_lcm_is_algorithm_3() -> None:
    """Luo et al. 2023, algorithm 3: the sample is noised to each timestep anew."""
    timesteps = CHAINS["shortened"]
    z, noise = start()
    for i, t in enumerate(timesteps):
        x0 = _x0(z, t)
        if i < len(timesteps) - 1:
            a = ABAR[timesteps[i + 1]]
            z = torch.sqrt(a) * x0 + torch.sqrt(1 - a) * noise.step()
    assert float((ours("lcm", timesteps) - x0).abs().max()) < BOUND


def test_pndm_as_stable_diffusion_samples_with_it() -> None:
    """Liu et al. 2022: Adams-Bashforth on epsilon, equation 11's transfer; the first step averaged with its end."""
    timesteps = CHAINS["shortened"]

    def transfer(z: Tensor, eps: Tensor, a: Tensor, a_s: Tensor) -> Tensor:
        root = torch.sqrt(a)
        difference = (a_s - a) / (root * (torch.sqrt((1 - a_s) * a) + torch.sqrt((1 - a) * a_s)))
        return torch.sqrt(a_s) / root * z - difference * eps

    z, _ = start()
    past: list[Tensor] = []
    for i, t in enumerate(timesteps):
        a = ABAR[t]
        a_s = ABAR[timesteps[i + 1]] if i + 1 < len(timesteps) else torch.tensor(1.0, dtype=torch.float64)
        past.append(network(z, t))
        match past[-4:]:
            case [e]:
                ahead = network(transfer(z, e, a, a_s), timesteps[1])
                eps = (e + ahead) / 2
            case [e1, e]:
                eps = (3 * e - e1) / 2
            case [e2, e1, e]:
                eps = (23 * e - 16 * e1 + 5 * e2) / 12
            case [e3, e2, e1, e]:
                eps = (55 * e - 59 * e1 + 37 * e2 - 9 * e3) / 24
        z = transfer(z, eps, a, a_s)
    assert float((ours("plms", timesteps) - z).abs().max()) < BOUND
