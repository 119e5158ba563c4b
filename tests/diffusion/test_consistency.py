"""Boundary terms, the levels below, and the steps along a trajectory, against what is known of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from langevin.diffusion.consistency import boundary, euler_step, heun_step, lower_levels, pseudo_huber, squared
from langevin.diffusion.core import Estimate
from langevin.diffusion.grids import make_grid
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
SEVERAL = SCHEDULE.sigmas[[10, 400, 999]]


def bent(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that is linear in nothing."""
    return torch.tanh(x / (1 + sigma.view(-1, 1, 1, 1)))


def test_the_boundary_is_exact() -> None:
    c_skip, c_out = boundary(SCHEDULE, SCHEDULE.sigmas)
    assert float(c_skip[0]) == 1.0 and float(c_out[0]) == 0.0
    # The published numbers: t times 10, a deviation of the data of 0.5.
    t = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(c_skip, 0.25 / ((10 * t) ** 2 + 0.25))
    assert torch.allclose(c_out, 10 * t / ((10 * t) ** 2 + 0.25).sqrt(), rtol=1e-15, atol=0)
    assert 2.4e-3 < float(c_skip[1]) < 2.5e-3 and float(c_skip[15]) > 1e-5 > float(c_skip[16])


@pytest.mark.parametrize("steps", range(1, 9))
def test_where_few_steps_lead_the_function_is_the_estimate(steps: int) -> None:
    """So the sampler `lcm`, which leaves the boundary out, and training agree."""
    levels = make_grid("trailing", SCHEDULE, steps)[:-1]
    c_skip, c_out = boundary(SCHEDULE, levels)
    assert float((c_skip * levels).max()) < 1e-6 and float((1 - c_out).max()) < 1e-6


def test_levels_below() -> None:
    levels = lower_levels(SCHEDULE, SEVERAL, 100, 4)
    assert len(levels) == 5 and torch.equal(levels[0], SEVERAL)
    assert torch.equal(levels[-1], SCHEDULE.sigmas[[0, 300, 899]])  # not below the smallest
    assert torch.equal(levels[2][1:], SCHEDULE.sigmas[[350, 949]])
    assert torch.allclose(SCHEDULE.t(levels[1]), torch.tensor([7.5, 375, 974], dtype=torch.float64))


def one_level(x: Tensor, sigma: float) -> Estimate:
    return Estimate(bent(x, torch.tensor([sigma], dtype=x.dtype)))


@pytest.mark.parametrize(("step", "sampler"), [(euler_step, "euler"), (heun_step, "heun")])
def test_each_image_goes_the_samplers_way_at_its_own_level(step: object, sampler: str) -> None:
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lower = lower_levels(SCHEDULE, SEVERAL, 60)[-1]
    assert callable(step)
    found = step(bent, x, SEVERAL, lower)
    noise = Noise([0], (2, 4, 4))
    for i in range(3):
        grid = torch.stack([SEVERAL[i], lower[i]])
        run = SAMPLERS[sampler].function(one_level, x[i : i + 1], grid, noise)
        *_, last = run
        assert torch.allclose(found[i : i + 1], last.x, rtol=1e-12, atol=1e-12)


def test_distances() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([1e-4, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    small, large = pseudo_huber(a.double(), b.double(), 0.01).tolist()
    assert small == pytest.approx(1e-8 / 0.02, rel=1e-3) and large == pytest.approx(3 - 0.01, rel=1e-4)
    assert squared(a, b).tolist() == pytest.approx([1e-8, 9.0])
