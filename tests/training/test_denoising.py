"""Levels, noise and the learned variance; and that the loss is learned to its known least value."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.training.objectives.denoising import Denoising, DenoisingConfig, Noised
from langevin.training.objectives.levels import Drawn, ImportanceLevels, LevelConfig, make_levels
from langevin.training.randomness import sample_generators


def streams(count: int, step: int = 0) -> list[torch.Generator]:
    return sample_generators(3, "test", step, [(0, i) for i in range(count)])


class Table(nn.Module):
    """F = a z + b with a and b for each timestep: enough for Gaussian pixels; wrong at first."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times)
        self.a = nn.Parameter(torch.ones(len(times)))
        self.b = nn.Parameter(torch.ones(len(times)))

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> Tensor:
        row = (t[:, None] - self.times).abs().argmin(1)
        return self.a[row].view(-1, 1, 1, 1) * z + self.b[row].view(-1, 1, 1, 1)


def table_model(prediction: Prediction, schedule: NoiseSchedule) -> DiffusionModel:
    model = DiffusionModel(nn.Identity(), schedule, prediction)
    return replace(model, network=Table(model.time(schedule.sigmas).float()))


# -- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", ["uniform", "importance"])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_gaussian_pixels_are_learned_to_the_least_possible_loss(prediction: Prediction, levels: str) -> None:
    """With x0 ~ N(m, s^2) the best estimate errs by s^2 sigma^2 / (s^2 + sigma^2), whatever is predicted."""
    m, s = 0.3, 0.6
    schedule = NoiseSchedule.geometric(8, 0.05, 20.0)
    model = table_model(prediction, schedule)
    denoising = Denoising(model, DenoisingConfig(levels=LevelConfig.model_validate({"name": levels})))
    optimiser = torch.optim.Adam(model.network.parameters(), lr=0.05)
    figures = []
    for step in range(400):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 400)
        generator = torch.Generator().manual_seed(step)
        x0 = m + s * torch.randn(64, 1, 4, 4, generator=generator)
        noised = denoising.noised(x0, streams(64, step), step)
        raw = model.raw(noised.seen, noised.levels.sigma, Conditioning())
        loss, _ = denoising.loss(noised, raw)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        figures.append(float(loss.detach()))
    sigma = schedule.sigmas
    best = float((denoising.weight(sigma) * s**2 * sigma**2 / (s**2 + sigma**2)).mean())
    assert sum(figures[:10]) / 10 > 2 * best
    # 400 steps of 1024 pixels: the mean of the last 100 is known to about 1 %.
    assert sum(figures[-100:]) / 100 == pytest.approx(best, rel=0.04)


# -- levels -------------------------------------------------------------------------------------------------------


def test_log_normal_levels_have_their_mean_and_deviation_and_stay_within_the_schedule() -> None:
    schedule = NoiseSchedule.geometric()
    levels = make_levels(LevelConfig.model_validate({"name": "log_normal", "mean": -1.0, "deviation": 0.8}), schedule)
    drawn = levels.draw(streams(4000), 0)
    assert drawn.t is None and torch.equal(drawn.share, torch.ones(4000, dtype=torch.float64))
    assert float(drawn.sigma.log().mean()) == pytest.approx(-1.0, abs=0.05)
    assert float(drawn.sigma.log().std()) == pytest.approx(0.8, abs=0.04)
    wide = make_levels(LevelConfig.model_validate({"name": "log_normal", "deviation": 50.0}), schedule)
    held = wide.draw(streams(100), 0).sigma
    assert float(held.min()) == schedule.sigma_min and float(held.max()) == schedule.sigma_max


def test_important_timesteps_are_drawn_more_often_and_count_less() -> None:
    """In proportion to the root of the losses' second moment, once every timestep has its history."""
    schedule = NoiseSchedule.linear(4)
    levels = ImportanceLevels(schedule, history=2, uniform_share=0.04)
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    for i, row in enumerate(([9.0, 9.0, 9.0, 9.0], [1.0, 2.0, 0.0, 3.0], [2.0, 1.0, 4.0, 3.0])):
        assert torch.equal(levels.probabilities(), uniform) == (i < 2)
        levels.note(Drawn(schedule.sigmas, torch.arange(4), uniform), torch.tensor(row))
    root = torch.tensor([2.5, 2.5, 8.0, 9.0], dtype=torch.float64).sqrt()  # the first row is forgotten
    expected = 0.96 * root / root.sum() + 0.01
    torch.testing.assert_close(levels.probabilities(), expected)
    drawn = levels.draw(streams(8000), step=7)
    assert drawn.t is not None
    shares = torch.bincount(drawn.t, minlength=4) / 8000
    torch.testing.assert_close(shares.double(), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.share, 0.25 / expected[drawn.t])
    anything = torch.tensor([3.0, -1.0, 5.0, 0.5], dtype=torch.float64)
    assert float((drawn.share * anything[drawn.t]).mean()) == pytest.approx(float(anything.mean()), abs=0.1)


def test_what_is_learned_within_a_step_is_used_from_the_next_one_on() -> None:
    """A batch gets the same levels whether it is computed at once or in parts, also right after a resume."""
    schedule = NoiseSchedule.linear(3)

    def fresh() -> ImportanceLevels:
        levels = ImportanceLevels(schedule, history=1, uniform_share=0.01)
        t = torch.arange(3)
        levels.note(Drawn(schedule.sigmas, t, torch.ones(3)), torch.tensor([1.0, 5.0, 2.0]))
        return levels

    whole, parts = fresh(), fresh()
    for step in (5, 6):
        drawn = whole.draw(streams(10, step), step)
        assert drawn.t is not None
        whole.note(drawn, drawn.t + 0.5)
        found = []
        for part in (slice(0, 3), slice(3, 10)):
            some = parts.draw(streams(10, step)[part], step)
            assert some.t is not None
            parts.note(some, some.t + 0.5)
            found.append(some.t)
        assert torch.equal(torch.cat(found), drawn.t)
        resumed = fresh()
        resumed.load_state_dict(whole.state_dict())
        assert torch.equal(resumed.probabilities(), whole.probabilities())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


APART = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from langevin.diffusion.schedule import NoiseSchedule
from langevin.training.objectives.levels import Drawn, ImportanceLevels

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
levels = ImportanceLevels(NoiseSchedule.linear(4), history=2, uniform_share=0.1)
t = torch.tensor([0, 1, 2, 3, 3, 1])[3 * rank : 3 * rank + 3]
levels.note(Drawn(torch.ones(3), t, torch.ones(3)), 1.0 + 10 * t + rank)
Path(sys.argv[2], str(rank)).write_text(repr((levels.losses.tolist(), levels.seen.tolist())))
dist.barrier()  # as the loop ends: who leaves earlier breaks the connection under the other
dist.destroy_process_group()
"""


def test_processes_learn_from_each_others_losses(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", APART, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    whole = ImportanceLevels(NoiseSchedule.linear(4), history=2, uniform_share=0.1)
    t = torch.tensor([0, 1, 2, 3, 3, 1])
    whole.note(Drawn(torch.ones(6), t, torch.ones(6)), 1.0 + 10 * t + torch.tensor([0, 0, 0, 1, 1, 1]))
    expected = repr((whole.losses.tolist(), whole.seen.tolist()))
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected] * 2


# -- noise --------------------------------------------------------------------------------------------------------


def noised_by(config: DenoisingConfig, count: int = 400) -> tuple[Noised, Tensor]:
    """Of black pictures, and the noise in units of sigma."""
    model = DiffusionModel(nn.Identity(), NoiseSchedule.linear(), Prediction.EPSILON)
    noised = Denoising(model, config).noised(torch.zeros(count, 2, 8, 8), streams(count), 0)
    return noised, noised.x / noised.levels.sigma.float().view(-1, 1, 1, 1)


def test_noise_offset_moves_whole_channels() -> None:
    plain, noise = noised_by(DenoisingConfig())
    assert plain.seen is plain.x
    assert float(noise.mean((2, 3)).std()) == pytest.approx(1 / 8, rel=0.1)  # of 64 pixels' mean
    _, shifted = noised_by(DenoisingConfig(noise_offset=0.5))
    means = shifted.mean((2, 3))
    assert float(means.std()) == pytest.approx(math.hypot(0.5, 1 / 8), rel=0.1)
    assert abs(float(torch.corrcoef(means.T)[0, 1])) < 0.15  # each channel has its own
    assert float((shifted - means[:, :, None, None]).std()) == pytest.approx(math.sqrt(63 / 64), rel=0.02)


def test_perturbed_input_is_seen_and_not_judged_by() -> None:
    plain, _ = noised_by(DenoisingConfig())
    noised, _ = noised_by(DenoisingConfig(input_perturbation=0.1))
    assert torch.equal(noised.x, plain.x)
    extra = (noised.seen - noised.x) / noised.levels.sigma.float().view(-1, 1, 1, 1)
    assert float(extra.std()) == pytest.approx(0.1, rel=0.02) and abs(float(extra.mean())) < 0.002


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"noise_offset": 0.1, "input_perturbation": 0.1},
        {"levels": {"name": "log_normal"}},
        {"levels": {"name": "importance"}},
    ],
)
def test_a_samples_noise_is_its_own(fields: dict[str, Any]) -> None:
    model = DiffusionModel(nn.Identity(), NoiseSchedule.linear(), Prediction.EPSILON)
    x0 = torch.linspace(-1, 1, 6 * 2 * 16).view(6, 2, 4, 4)
    whole = Denoising(model, DenoisingConfig.model_validate(fields)).noised(x0, streams(6), 0)
    part = Denoising(model, DenoisingConfig.model_validate(fields)).noised(x0[2:4], streams(6)[2:4], 0)
    assert torch.equal(whole.x[2:4], part.x) and torch.equal(whole.seen[2:4], part.seen)
    assert torch.equal(whole.levels.sigma[2:4], part.levels.sigma)


# -- learned variance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
def test_the_bounds_terms_are_the_papers(prediction: Prediction) -> None:
    """Against Ho et al. 2020, equations 6, 7, 12 and 13, and Nichol & Dhariwal 2021, equation 15, evaluated on z with
    torch's own divergence and scipy's distribution function, in float64."""
    schedule = NoiseSchedule.linear()
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 0, 1, 2, 10, 500, 998, 999])
    shape = (len(t), 2, 3, 3)
    x0 = torch.randint(0, 256, shape, generator=generator).double() / 127.5 - 1
    x0[0, 0, 0, 0], x0[1, 0, 0, 0] = -1, 1  # the open bins
    eps, wrong, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = schedule.sigmas[t]
    x = x0 + sigma.view(-1, 1, 1, 1) * eps
    model = DiffusionModel(nn.Identity(), schedule, prediction, learned_variance=True)
    denoising = Denoising(model, DenoisingConfig(), variational=0.001)
    noised = Noised(x0, x, x, Drawn(sigma, t, torch.ones(len(t), dtype=torch.float64)))
    raw = model.target(x0, x, sigma) + 0.1 * wrong
    found = denoising.bound_terms(noised, raw, (v + 1) / 2)

    beta, abar = schedule.betas, schedule.abar
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    posterior = beta * (1 - before) / (1 - abar)
    clipped = torch.cat([posterior[1:2], posterior[1:]])
    for i, n in enumerate(t.tolist()):
        z = abar[n].sqrt() * x[i]
        if prediction is Prediction.EPSILON:
            x0_hat = (z - (1 - abar[n]).sqrt() * raw[i]) / abar[n].sqrt()
        else:
            x0_hat = abar[n].sqrt() * z - (1 - abar[n]).sqrt() * raw[i]
        share = (v[i] + 1) / 2
        deviation = torch.exp((share * beta[n].log() + (1 - share) * clipped[n].log()) / 2)

        def mean(clean: Tensor, z: Tensor = z, n: int = n) -> Tensor:
            on_x0 = before[n].sqrt() * beta[n] / (1 - abar[n])
            return on_x0 * clean + (1 - beta[n]).sqrt() * (1 - before[n]) / (1 - abar[n]) * z

        if n == 0:
            decoder = stats.norm(mean(x0_hat).numpy(), deviation.numpy())
            upper = np.where(x0[i].numpy() == 1, np.inf, x0[i].numpy() + 1 / 255)
            lower = np.where(x0[i].numpy() == -1, -np.inf, x0[i].numpy() - 1 / 255)
            nats = -torch.from_numpy(np.log(decoder.cdf(upper) - decoder.cdf(lower)))
        else:
            nats = kl_divergence(Normal(mean(x0[i]), posterior[n].sqrt()), Normal(mean(x0_hat), deviation))
        assert abs(float(nats.mean()) / math.log(2) - float(found[i])) < 1e-10, n

    # L_hybrid = L_simple + 0.001 (L_0 + ... + L_{T-1}), the sum estimated by T times a term.
    loss, parts = denoising.loss(noised, torch.cat([raw, v], 1))
    simple, _ = Denoising(replace(model, learned_variance=False), DenoisingConfig()).loss(noised, raw)
    assert float(loss) == pytest.approx(float(simple + 0.001 * 1000 * found.mean()), rel=1e-12)
    assert float(parts["bound"]) == pytest.approx(float(1000 * found.mean()), rel=1e-12)


def test_the_mean_does_not_learn_from_the_bound() -> None:
    schedule = NoiseSchedule.cosine(10)
    model = DiffusionModel(nn.Identity(), schedule, Prediction.EPSILON, learned_variance=True)
    x0 = torch.randint(0, 256, (10, 1, 4, 4), generator=torch.Generator().manual_seed(1)).float() / 127.5 - 1
    gradients = {}
    for variational in (1e-3, 10.0):
        denoising = Denoising(model, DenoisingConfig(), variational=variational)
        noised = denoising.noised(x0, streams(10), 0)
        t = torch.arange(10)  # every level, the decoder's too
        x = x0 + schedule.sigmas[t].float().view(-1, 1, 1, 1) * 0.5
        noised = Noised(x0, x, x, Drawn(schedule.sigmas[t], t, torch.ones(10)))
        raw = torch.full((10, 2, 4, 4), 0.1, requires_grad=True)
        denoising.loss(noised, raw)[0].backward()
        assert raw.grad is not None and bool(torch.isfinite(raw.grad).all())
        gradients[variational] = raw.grad
    mean, variance = (torch.stack([g[:, part] for g in gradients.values()]) for part in (0, 1))
    assert torch.equal(mean[0], mean[1])
    torch.testing.assert_close(1e4 * variance[0], variance[1], rtol=1e-4, atol=1e-6)
    assert bool((variance[1].abs().amax((1, 2)) > 0).all())
