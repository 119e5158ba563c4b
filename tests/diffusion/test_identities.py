"""The identities that the design rests on, over schedules x grids x prediction types, at float64.

The right-hand sides are computed in variance-preserving coordinates from the raw network output, by each prediction
type's own published conversion; the left-hand sides are our samplers over D(x, sigma).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.diffusion.known_denoisers import noise64, wavy
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.grids import GRIDS, make_grid
from langevin.diffusion.guidance import combine, combine_in, guided, keep_known
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.samplers import SAMPLERS, final
from langevin.diffusion.schedule import NoiseSchedule

SCHEDULES = (
    NoiseSchedule.linear(),
    NoiseSchedule.scaled_linear(),
    NoiseSchedule.cosine(),
    NoiseSchedule.sigmoid(),
    NoiseSchedule.scaled_linear().rescaled_zero_terminal_snr(),
)
BOUND = 1e-9  # of z and x0, which are of order 1

schedules = st.sampled_from(SCHEDULES)
grids = st.sampled_from(sorted(set(GRIDS) - {"align_your_steps"}))
vp_predictions = st.sampled_from([Prediction.EPSILON, Prediction.X0, Prediction.V])


def raw_network(z: Tensor, sigma: float) -> Tensor:
    return torch.tanh(z) + 0.2 * torch.cos(2 * z + sigma / (1 + sigma))


def as_denoiser(prediction: Prediction) -> Denoiser:
    def denoise(x: Tensor, sigma: float) -> Estimate:
        c_skip, c_out, c_in = prediction.coefficients(torch.tensor(sigma, dtype=torch.float64))
        return Estimate(c_skip * x + c_out * raw_network(c_in * x, sigma))

    return denoise


def both(prediction: Prediction, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """(x0, epsilon) from the raw output by the published conversions, from z."""
    abar = 1 / (1 + torch.tensor(sigma, dtype=torch.float64) ** 2)
    a, b = abar.sqrt(), (1 - abar).sqrt()
    out = raw_network(z, sigma)
    match prediction:
        case Prediction.EPSILON:
            return (z - b * out) / a, out
        case Prediction.X0:
            return out, (z - a * out) / b
        case Prediction.V:
            return a * z - b * out, a * out + b * z
        case _:
            raise AssertionError(prediction)


def grid_of(schedule: NoiseSchedule, name: str, steps: int) -> Tensor:
    return make_grid(name, schedule, steps)


@given(schedules, grids, vp_predictions, st.integers(1, 12), st.floats(0, 1))
@settings(max_examples=60)
def test_1_ddim_is_euler_ancestral(
    schedule: NoiseSchedule, name: str, prediction: Prediction, steps: int, eta: float
) -> None:
    # abar of the zero-terminal-SNR schedule's end is 6e-8: x0 from epsilon there has 4096 times z's rounding.
    assume(not (prediction is Prediction.EPSILON and schedule.sigma_max > 1000))
    sigmas, noise = grid_of(schedule, name, steps), noise64()
    x = float(sigmas[0]) * noise.initial()
    got = final(SAMPLERS["ddim"].run(as_denoiser(prediction), x, sigmas, noise, eta=eta))

    abars = (1 / (1 + sigmas**2)).tolist()
    noise = noise.fresh()
    z = x * abars[0] ** 0.5
    for i, (a, a1) in enumerate(pairwise(abars)):
        x0, eps = both(prediction, z, float(sigmas[i]))
        deviation = eta * ((1 - a1) / (1 - a) * (1 - a / a1)) ** 0.5
        z = a1**0.5 * x0 + max(1 - a1 - deviation**2, 0) ** 0.5 * eps
        if a1 < 1 and eta > 0:
            z = z + deviation * noise.step()
    assert float((got - z).abs().max()) < BOUND * max(1.0, float(z.abs().max()))
    ancestral = final(SAMPLERS["euler_ancestral"].run(as_denoiser(prediction), x, sigmas, noise.fresh(), eta=eta))
    assert torch.equal(got, ancestral)


@given(schedules, grids, st.integers(1, 12))
@settings(max_examples=30)
def test_1_without_noise_both_are_euler(schedule: NoiseSchedule, name: str, steps: int) -> None:
    sigmas, noise = grid_of(schedule, name, steps), noise64()
    x = float(sigmas[0]) * noise.initial()
    ddim, euler = (final(SAMPLERS[n].run(wavy, x, sigmas, noise)) for n in ("ddim", "euler"))
    assert torch.equal(ddim, euler)
    for a, b in pairwise(sigmas.tolist()):
        x = x + (b - a) * (x - wavy(x, a).x0) / a
    assert float((euler - x).abs().max()) < 1e-9


@given(schedules, grids, st.integers(2, 12))
@settings(max_examples=30)
def test_2_ddpm_is_the_step_with_eta_1(schedule: NoiseSchedule, name: str, steps: int) -> None:
    sigmas, noise = grid_of(schedule, name, steps), noise64()
    x = float(sigmas[0]) * noise.initial()
    small = final(SAMPLERS["ddpm"].run(wavy, x, sigmas, noise))
    ddim = final(SAMPLERS["ddim"].run(wavy, x, sigmas, noise.fresh(), eta=1.0))
    assert float((small - ddim).abs().max()) < 1e-9


def test_2_the_learned_variance_lies_between_the_fixed_ones() -> None:
    sigmas, noise = torch.tensor([3.0, 1.0], dtype=torch.float64), noise64()
    x = 3 * noise.initial()

    def at(fraction: float | None, variance: str) -> Tensor:
        def denoise(x: Tensor, sigma: float) -> Estimate:
            learned = None if fraction is None else torch.full_like(x, fraction)
            return Estimate(wavy(x, sigma).x0, learned)

        return final(SAMPLERS["ddpm"].run(denoise, x, sigmas, noise.fresh(), variance=variance))

    small, large = at(None, "fixed_small"), at(None, "fixed_large")
    torch.testing.assert_close(at(0.0, "learned"), small, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at(1.0, "learned"), large, rtol=1e-12, atol=1e-12)
    quiet = final(SAMPLERS["euler"].run(wavy, x, torch.tensor([3.0, 1 / 3.0], dtype=torch.float64), noise))
    middle = torch.sqrt((small - quiet).abs() * (large - quiet).abs())
    torch.testing.assert_close((at(0.5, "learned") - quiet).abs(), middle, rtol=1e-9, atol=1e-12)


@given(schedules, grids, vp_predictions, st.integers(1, 12))
@settings(max_examples=40)
def test_3_dpm_solver_needs_only_h(schedule: NoiseSchedule, name: str, prediction: Prediction, steps: int) -> None:
    assume(not (prediction is Prediction.EPSILON and schedule.sigma_max > 1000))
    sigmas, noise = grid_of(schedule, name, steps), noise64()
    x = float(sigmas[0]) * noise.initial()
    got = final(SAMPLERS["dpmpp_2m"].run(as_denoiser(prediction), x, sigmas, noise))

    abar = 1 / (1 + sigmas**2)
    alpha, deviation = abar.sqrt(), (1 - abar).sqrt()
    lam = torch.log(alpha / deviation)
    z, last = alpha[0] * x, None
    for i in range(steps):
        x0, _ = both(prediction, z, float(sigmas[i]))
        if i == steps - 1:
            z = x0
            break
        h = lam[i + 1] - lam[i]
        d = x0
        if last is not None:
            d = x0 + (x0 - last) * h / (lam[i] - lam[i - 1]) / 2
        z, last = deviation[i + 1] / deviation[i] * z - alpha[i + 1] * torch.expm1(-h) * d, x0
    assert float((got - z).abs().max()) < BOUND * max(1.0, float(z.abs().max()))


@given(st.floats(0.02, 100), st.floats(-2, 15), st.sampled_from([Prediction.EPSILON, Prediction.V, Prediction.FLOW]))
@settings(max_examples=40)
def test_5_guidance_is_the_same_in_every_space(sigma: float, scale: float, space: Prediction) -> None:
    noise = noise64()
    x = sigma * noise.initial()
    cond, uncond = noise.step(), noise.step()
    in_x0 = combine(cond, uncond, scale)
    c_skip, c_out, _ = space.coefficients(torch.tensor(sigma, dtype=torch.float64))
    raw_cond, raw_uncond = ((x0 - c_skip * x) / c_out for x0 in (cond, uncond))
    in_space = c_skip * x + c_out * (raw_uncond + scale * (raw_cond - raw_uncond))
    assert float((in_x0 - in_space).abs().max()) < 1e-9
    assert float((combine_in(space, cond, uncond, x, sigma, scale) - in_x0).abs().max()) == 0
    # Rescaling is not linear: there the space matters.
    rescaled = combine_in(space, cond, uncond, x, sigma, 3.0, rescale=0.7)
    assert float((rescaled - combine(cond, uncond, 3.0, 0.7)).abs().max()) > 1e-6


@given(st.sampled_from(sorted(SAMPLERS)), grids)
@settings(max_examples=60)
def test_6_known_pixels_are_known_after_every_sampler(sampler: str, name: str) -> None:
    sigmas, noise = make_grid(name, SCHEDULES[1], 6), noise64()
    known = torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, 2, 3, 4).expand(2, -1, -1, -1)
    mask = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    mask[..., 1:] = True
    x = known + float(sigmas[0]) * noise.initial()
    result = final(SAMPLERS[sampler].run(keep_known(wavy, known, mask), x, sigmas, noise))
    kept = (result - known)[..., :1].abs().max()
    if sampler in ("lms", "plms"):  # their last step extrapolates slopes that have rounding in them
        assert float(kept) < 1e-9
    else:
        assert float(kept) == 0
    assert float((result - known)[..., 1:].abs().max()) > 0.1


def test_7_inversion_returns_to_the_start() -> None:
    sigmas = make_grid("karras", SCHEDULES[1], 400, rho=3.0)[:-1]  # from the smallest level, never 0
    noise = noise64()
    picture = 0.5 * noise.initial()
    up = final(SAMPLERS["euler"].run(wavy, picture, sigmas.flip(0), noise))
    down = final(SAMPLERS["euler"].run(wavy, up, sigmas, noise))
    error = float((down - picture).abs().max())
    finer = make_grid("karras", SCHEDULES[1], 800, rho=3.0)[:-1]
    again = final(SAMPLERS["euler"].run(wavy, picture, finer.flip(0), noise))
    finer_error = float((final(SAMPLERS["euler"].run(wavy, again, finer, noise)) - picture).abs().max())
    assert error < 0.05
    assert finer_error < 0.6 * error  # of first order


def test_guided_denoisers_run_in_any_sampler() -> None:
    sigmas, noise = make_grid("trailing", SCHEDULES[1], 5), noise64()

    def other(x: Tensor, sigma: float) -> Estimate:
        return Estimate(0.5 * wavy(x, sigma).x0)

    x = float(sigmas[0]) * noise.initial()
    plain = final(SAMPLERS["dpmpp_2m"].run(wavy, x, sigmas, noise))
    assert torch.equal(final(SAMPLERS["dpmpp_2m"].run(guided(wavy, other, 1.0), x, sigmas, noise)), plain)
    assert not torch.equal(final(SAMPLERS["dpmpp_2m"].run(guided(wavy, other, 4.0), x, sigmas, noise)), plain)
