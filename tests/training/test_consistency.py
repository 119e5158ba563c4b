"""Consistency distillation where everything is known: Gaussian data, whose denoiser, trajectories and consistency
function are affine; and small networks, where the gradient belongs."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.conftest import MakeBundle, randomise
from torch import Tensor, nn

from langevin.diffusion.consistency import boundary
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel, per_image
from langevin.model.guided import guided_model
from langevin.training.config import LoopConfig
from langevin.training.finetuning.config import DistillStage
from langevin.training.finetuning.parts import LoraOptions, LoraTarget, TunedLora, TunedWeights
from langevin.training.objectives.consistency import Consistency, guided_x0
from langevin.training.objectives.levels import GridLevels, LevelConfig, LevelSampling, make_levels
from langevin.training.randomness import generator

SCHEDULE = NoiseSchedule.scaled_linear()
DEVIATION = 0.8
GUIDANCE = 3.0
MEANS = {"cond": 0.5, "uncond": -0.25}
GUIDED_MEAN = MEANS["uncond"] + GUIDANCE * (MEANS["cond"] - MEANS["uncond"])
"""Guidance of two Gaussians of one deviation is the denoiser of a third."""
COND, UNCOND = (Conditioning(context=torch.full((8, 1, 1), m, dtype=torch.float64)) for m in MEANS.values())
BOTH = [Prediction.EPSILON, Prediction.V]


def stage(**options: Any) -> DistillStage:
    loop = LoopConfig(steps=1, batch_size=1, learning_rate=1.0)
    return DistillStage(**{"guidance": GUIDANCE, "loss": "l2", "loop": loop, **options})


class Affine(nn.Module):
    """A network whose D is mean + gain (x - mean), the mean from the context or given, the gain of the noise level."""

    def __init__(self, prediction: Prediction, mean: float | None = None, consistent: bool = False) -> None:
        super().__init__()
        self.prediction, self.mean, self.consistent = prediction, mean, consistent
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))  # its dtype is the network's

    def gain(self, sigma: Tensor) -> Tensor:
        if self.consistent:  # along the trajectory x - mean goes as sqrt(DEVIATION^2 + sigma^2)
            return ((DEVIATION**2 + SCHEDULE.sigma_min**2) / (DEVIATION**2 + sigma**2)).sqrt()
        return DEVIATION**2 / (DEVIATION**2 + sigma**2)

    def forward(self, z: Tensor, t: Tensor, *, context: Tensor, **_: Any) -> Tensor:
        sigma = SCHEDULE.sigma(t)
        c_skip, c_out, c_in = self.prediction.coefficients(sigma)
        x = z / per_image(c_in, z)
        mean = context[..., None] if self.mean is None else self.mean
        x0 = mean + per_image(self.gain(sigma), z) * (x - mean)
        return (x0 - per_image(c_skip, z) * x) / per_image(c_out, z)


def at(t: int, count: int = 8) -> tuple[Tensor, Tensor]:
    """Noised samples of the guided Gaussian, float64, and their level."""
    sigma = SCHEDULE.sigmas[t].expand(count)
    x = torch.randn(count, 1, 3, 3, dtype=torch.float64, generator=generator(0, "x", t))
    return GUIDED_MEAN + x * float((DEVIATION**2 + sigma[0] ** 2).sqrt()), sigma


def made(prediction: Prediction, student: nn.Module, **options: Any) -> Consistency:
    teacher = Affine(prediction)
    return Consistency(DiffusionModel(student, SCHEDULE, prediction), lambda: nullcontext(teacher), stage(**options))


# -- the objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", BOTH)
def test_the_true_function_has_no_loss_but_the_solvers(prediction: Prediction) -> None:
    """Guidance included: the loss falls with the square of the solver's local error, orders 2 and 3."""
    true = Affine(prediction, GUIDED_MEAN, consistent=True)
    x, sigma = at(600)
    for solver, order in (("euler", 2), ("heun", 3)):
        losses = [
            float(made(prediction, true, solver=solver, skip=n).loss(x, sigma, COND, UNCOND)[0]) for n in (80, 40, 20)
        ]
        for coarse, fine in pairwise(losses):
            assert coarse / fine == pytest.approx(4**order, rel=0.25), solver
    before = float(made(prediction, Affine(prediction), skip=20).loss(x, sigma, COND, UNCOND)[0])
    unguided = Affine(prediction, MEANS["cond"], consistent=True)
    without = float(made(prediction, unguided, skip=20).loss(x, sigma, COND, UNCOND)[0])
    assert before > 1000 * losses[-1] and without > 1000 * losses[-1]


class Learned(Affine):
    """Gain and shift of the four levels that train."""

    def __init__(self, prediction: Prediction, t: Tensor) -> None:
        super().__init__(prediction)
        self.t = t
        self.values = nn.Parameter(torch.tensor([[0.5, 0.5]] * len(t), dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor, *, context: Tensor, **_: Any) -> Tensor:
        sigma = SCHEDULE.sigma(t)
        c_skip, c_out, c_in = self.prediction.coefficients(sigma)
        x = z / per_image(c_in, z)
        gain, shift = self.values[torch.searchsorted(self.t, t.long()).clamp(max=len(self.t) - 1)].unbind(1)
        x0 = per_image(gain / (1 + sigma), z) * x + per_image(shift, z)
        return (x0 - per_image(c_skip, z) * x) / per_image(c_out, z)


@pytest.mark.parametrize(("prediction", "loss"), [(Prediction.EPSILON, "l2"), (Prediction.V, "huber")])
def test_training_reaches_the_consistency_function(prediction: Prediction, loss: str) -> None:
    """From one level to the next, four hops up from the boundary, guidance learned on the way."""
    levels = make_levels(LevelConfig(name=LevelSampling.GRID, steps=4), SCHEDULE)
    assert isinstance(levels, GridLevels)
    t = levels.t.flip(0)
    assert t.tolist() == [249, 499, 749, 999]
    student = Learned(prediction, t)
    wanted = made(prediction, student, skip=250, solver="heun", solver_steps=12, loss=loss, huber_c=0.1)
    optimizer = torch.optim.Adam([student.values], 0.1)
    x, sigma = (torch.cat(parts) for parts in zip(*(at(int(i), 4) for i in t), strict=True))
    cond, uncond = (Conditioning(context=c.context[:1].expand(16, 1, 1)) for c in (COND, UNCOND))  # type: ignore[index]
    found = wanted.earlier(x, sigma, cond, uncond)
    wanted.earlier = lambda *_: found  # type: ignore[method-assign]  # the teacher does not change, nor does x
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.99**step
        optimizer.zero_grad()
        wanted.loss(x, sigma, cond, uncond)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    gain = Affine(prediction, consistent=True).gain(sigma)
    true = GUIDED_MEAN + per_image(gain, x) * (x - GUIDED_MEAN)
    with torch.no_grad():
        error = (wanted.estimate(x, sigma, cond) - true).square().mean().sqrt()
    assert float(error) < 0.03 * float(true.std())


@pytest.mark.parametrize("prediction", BOTH)
def test_the_boundary_does_not_ask_the_network(prediction: Prediction) -> None:
    student = made(prediction, Affine(prediction, mean=1e6))
    x, sigma = at(0)
    assert torch.equal(student.estimate(x, sigma, COND), x)
    x, sigma = at(249)
    _, c_out = boundary(SCHEDULE, sigma)
    assert torch.allclose(student.estimate(x, sigma, COND) / float(c_out[0]), guided_x0(
        student.model, COND, UNCOND, 1)(x, sigma), rtol=1e-6)  # fmt: skip


def test_a_weighting_acts_on_each_sample() -> None:
    x, sigma = at(600)
    plain, _ = made(Prediction.V, Affine(Prediction.V)).loss(x, sigma, COND, UNCOND)
    weighted, parts = made(Prediction.V, Affine(Prediction.V), weighting="snr").loss(x, sigma, COND, UNCOND)
    assert float(weighted) == pytest.approx(float(plain / sigma[0] ** 2)) and float(parts["unweighted"]) == float(plain)


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_teacher_is_the_guided_model(make_bundle: MakeBundle, prediction: str) -> None:
    bundle = make_bundle(prediction)
    x = torch.randn(2, 4, 8, 8, generator=generator(0, "x"))
    cond, uncond = (Conditioning(context=torch.randn(2, 5, 32, generator=generator(0, n))) for n in ("c", "u"))
    sigma = torch.tensor([0.5, 6.0], dtype=torch.float64)
    with torch.no_grad():
        found = guided_x0(bundle.diffusion, cond, uncond, 3.0)(x, sigma)
        for i, level in enumerate(sigma.tolist()):
            one = guided_model(bundle.diffusion, cond[i : i + 1], uncond[i : i + 1], 3.0)(x[i : i + 1], level).x0
            assert torch.allclose(found[i : i + 1], one, atol=1e-4)


@pytest.mark.parametrize("way", ["lora", "all"])
def test_the_gradient_is_the_students_alone(make_bundle: MakeBundle, way: str) -> None:
    """In bfloat16 too, where weights are cast once for the pass that learns and for those that do not."""
    bundle = make_bundle("v")
    network = bundle.diffusion.network
    options = LoraOptions(rank=2, targets=(LoraTarget.TRANSFORMER, LoraTarget.CONVOLUTION))
    tuned: Any = TunedLora(bundle, options) if way == "lora" else TunedWeights(bundle, text=False)
    if way == "lora":
        randomise(tuned.module, 5).requires_grad_(True)
    lent = tuned.resting if way == "lora" else lambda: nullcontext(network)
    objective = Consistency(DiffusionModel(tuned.unet, SCHEDULE, Prediction.V), lent, stage(skip=100))
    x = 3 * torch.randn(2, 4, 8, 8, generator=generator(0, "x"))
    cond, uncond = (Conditioning(context=torch.randn(2, 5, 32, generator=generator(0, n))) for n in ("c", "u"))
    sigma = torch.tensor([0.5, 6.0], dtype=torch.float64)
    gradients = []
    for half in (False, True):
        tuned.module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            objective.loss(x, sigma, cond, uncond)[0].backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.any() for p in tuned.module.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in tuned.module.parameters()]))
    assert float(torch.cosine_similarity(*gradients, 0)) > 0.9
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    with lent() as teacher, torch.no_grad():
        time = torch.tensor([10.0, 900.0])
        plain = make_bundle("v").diffusion.network(x, time, context=cond.context)
        assert torch.equal(teacher(x, time, context=cond.context), plain)
    with torch.no_grad():
        assert (way == "all") == torch.equal(tuned.unet(x, time, context=cond.context), plain)


def test_options_without_meaning_are_refused() -> None:
    for options, said in (
        ({"input_perturbation": 0.1}, "has no meaning here"),
        ({"lora": {"targets": ["text"]}}, "the text tower is the teacher's too"),
        ({"levels": {"name": "importance"}}, "takes uniform, log_normal or grid"),
        ({"levels": {"name": "uniform", "steps": 3}}, "steps 3 has no meaning with uniform"),
    ):
        with pytest.raises(ValidationError, match=said):
            stage(**options)  # type: ignore[arg-type]
