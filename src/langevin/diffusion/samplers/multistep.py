"""Samplers that remember earlier estimates: linear multistep, PNDM, DPM-Solver++ multistep, UniPC.

The memory is in local variables; x0 and slopes of earlier steps are the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import assert_never

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Step
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers.common import intervals, toward
from langevin.errors import RequestError


def lms(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, order: int = 4) -> Iterator[Step]:
    """Adams-Bashforth on the grid as it is: the polynomial through the last `order` slopes, integrated exactly
    (k-diffusion, `sample_lms`; Katherine Crowson 2022). order 1 to 4.

    Converges with order 2: the first step can only be Euler's, and its error remains.
    """
    if not 1 <= order <= 4:
        raise RequestError(f"order {order} of lms is out of range; it must be 1 to 4")
    history: list[tuple[float, Tensor]] = []
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        history = [*history, (s, (x - x0) / s)][-order:]
        weights = _adams_bashforth([level for level, _ in history], s, s1)
        x = x + _weighted(weights, [slope for _, slope in history])
        yield Step(i, s1, x, x0)


def _adams_bashforth(nodes: Sequence[float], a: float, b: float) -> list[float]:
    """Integrals from a to b of the Lagrange polynomials over at most 4 nodes.

    They are cubic at most, for which Gauss's rule with two points is exact.
    """
    middle, half = (a + b) / 2, (b - a) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))

    def lagrange(j: int, at: float) -> float:
        return math.prod((at - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)

    return [half * sum(lagrange(j, point) for point in points) for j in range(len(nodes))]


_PLMS_WEIGHTS = {
    1: (1.0,),
    2: (-1 / 2, 3 / 2),
    3: (5 / 12, -16 / 12, 23 / 12),
    4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
}
"""Adams-Bashforth on equal steps, oldest first."""


class Slope(StrEnum):
    """What `plms` remembers of a step."""

    EPSILON = "epsilon"
    """The noise estimate, which is the slope."""
    V = "v"
    """The velocity `(eps - sigma x0) / sqrt(1 + sigma^2)`, made a slope again with the state of the step it is for."""


def plms(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, remember: Slope | str = Slope.EPSILON
) -> Iterator[Step]:
    """Pseudo linear multistep (Liu et al. 2022, PNDM, equations 9 to 12; as Stable Diffusion uses it). Order 2.

    The slope is the noise estimate, the transfer function is Euler's step in sigma; the weights are those of equal
    steps whatever the grid. The first step is done twice: its second slope is taken at its end and averaged in.
    """
    remember = Slope(remember)
    history: list[Tensor] = []
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        history = [*history, _remembered(remember, x, x0, s)][-4:]
        value = _weighted(_PLMS_WEIGHTS[len(history)], history)
        if i == 0 and s1 > 0:
            ahead = x + (s1 - s) * _slope(remember, value, x, s)
            value = (value + _remembered(remember, ahead, denoiser(ahead, s1).x0, s1)) / 2
        x = x + (s1 - s) * _slope(remember, value, x, s)
        yield Step(i, s1, x, x0)


def _remembered(remember: Slope, x: Tensor, x0: Tensor, s: float) -> Tensor:
    epsilon = (x - x0) / s
    match remember:
        case Slope.EPSILON:
            return epsilon
        case Slope.V:
            return (epsilon - s * x0) / math.hypot(1, s)
        case _:
            assert_never(remember)


def _slope(remember: Slope, value: Tensor, x: Tensor, s: float) -> Tensor:
    match remember:
        case Slope.EPSILON:
            return value
        case Slope.V:
            return value / math.hypot(1, s) + (s / (1 + s * s)) * x
        case _:
            assert_never(remember)


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add_(value, alpha=weight)
    return total


def dpmpp_2m(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, first_order_final: bool = False
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2). Order 2.

    x0 is extrapolated linearly in log sigma to the middle of the step. The step to 0, infinitely long in log sigma,
    takes x0 as it is; with `first_order_final` the last step does so wherever the grid ends.
    """
    yield from dpmpp_2m_sde(denoiser, x, sigmas, noise, eta=0.0, first_order_final=first_order_final)


class Solver(StrEnum):
    """How the second-order term of DPM-Solver++ 2M is integrated (as k-diffusion names them)."""

    MIDPOINT = "midpoint"
    """x0 as at the middle of the step."""
    HEUN = "heun"
    """x0 linear over the step, integrated exactly."""


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Solver | str = Solver.MIDPOINT,
    first_order_final: bool = False,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b; eta as in k-diffusion, `sample_dpmpp_2m_sde`). Stochastic.

    eta = 1 is the reverse SDE, 0 is `dpmpp_2m`. Order 2 in eta = 0. The step to 0 takes x0 as it is.
    """
    solver = Solver(solver)
    steps = intervals(sigmas)
    x0_last, h_last = None, 0.0
    for i, s, s1 in steps:
        x0 = denoiser(x, s).x0
        if s1 == 0:
            x = x0
        else:
            h = math.log(s / s1)
            k = (1 + eta) * h
            target = x0
            if x0_last is not None and not (first_order_final and i == len(steps) - 1):
                weight = 1 / 2 if solver is Solver.MIDPOINT else 1 / -math.expm1(-k) - 1 / k
                target = x0 + weight * h / h_last * (x0 - x0_last)
            x = toward(target, x, math.exp(-k))
            if eta > 0:
                x = x + s_noise * s1 * math.sqrt(-math.expm1(-2 * eta * h)) * noise.between(s, s1)
            x0_last, h_last = x0, h
        yield Step(i, s1, x, x0)


def dpmpp_3m_sde(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """SDE-DPM-Solver++(3M) (Lu et al. 2022b; k-diffusion, `sample_dpmpp_3m_sde`). Stochastic.

    x0 is extrapolated by the parabola through the last three estimates. The published weight of its second
    difference is half of the Taylor term's, so that the order in eta = 0 is 2. The step to 0 takes x0 as it is.
    """
    past: list[tuple[Tensor, float]] = []  # (x0, length in log sigma of the step that it began), newest last
    for i, s, s1 in intervals(sigmas):
        x0 = denoiser(x, s).x0
        if s1 == 0:
            x = x0
        else:
            h = math.log(s / s1)
            k = (1 + eta) * h
            x = toward(x0, x, math.exp(-k))
            phi_2 = math.expm1(-k) / k + 1
            if len(past) == 1:
                ((x0_a, h_a),) = past
                x = x + phi_2 * h / h_a * (x0 - x0_a)
            elif len(past) == 2:
                (x0_b, h_b), (x0_a, h_a) = past
                r_a, r_b = h_a / h, h_b / h
                first_a, first_b = (x0 - x0_a) / r_a, (x0_a - x0_b) / r_b
                second = (first_a - first_b) / (r_a + r_b)
                phi_3 = phi_2 / k - 1 / 2
                x = x + phi_2 * (first_a + r_a * second) - phi_3 * second
            if eta > 0:
                x = x + s_noise * s1 * math.sqrt(-math.expm1(-2 * eta * h)) * noise.between(s, s1)
            past = [*past, (x0, h)][-2:]
        yield Step(i, s1, x, x0)


class Residual(StrEnum):
    """The function B(h) of UniPC (Zhao et al. 2023, section 3)."""

    BH1 = "bh1"
    """B(h) = h: better with few steps and little guidance."""
    BH2 = "bh2"
    """B(h) = exp(h) - 1: better with guidance."""


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    order: int = 2,
    variant: Residual | str = Residual.BH2,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """UniPC on x0 (Zhao et al. 2023, algorithms 1 and 2). order 1 to 3; converges with order 2.

    The estimate at the end of each step, made for the next one anyhow, first corrects the step (UniC). With
    `lower_order_final` the last steps are of order ..., 2, 1, as the authors advise; the step to 0 has order 1 always.
    """
    if not 1 <= order <= 3:
        raise RequestError(f"order {order} of unipc is out of range; it must be 1 to 3")
    variant = Residual(variant)
    steps = intervals(sigmas)
    history: list[tuple[float, Tensor]] = []  # (sigma, x0) of the last steps, newest last
    used, start = 0, x
    for i, s, s1 in steps:
        x0 = denoiser(x, s).x0
        if i > 0:
            x = _unified_step(start, history[-used:], s, variant, x0)
        history = [*history, (s, x0)][-order:]
        used, start = min(len(history), len(steps) - i) if lower_order_final else len(history), x
        x = x0 if s1 == 0 else _unified_step(start, history[-used:], s1, variant)
        yield Step(i, s1, x, x0)


def _unified_step(
    x: Tensor, history: Sequence[tuple[float, Tensor]], s1: float, variant: Residual, x0_end: Tensor | None = None
) -> Tensor:
    """From the newest level of `history` to s1: UniP, or UniC where the estimate at the end is known.

    Zhao et al. 2023, algorithms 1 and 2 for x0 prediction, where alpha cancels.
    """
    s, x0 = history[-1]
    h = math.log(s / s1)
    nodes = [math.log(s / level) / h for level, _ in history[:-1]]
    differences = [(value - x0) / r for (_, value), r in zip(history[:-1], nodes, strict=True)]
    if x0_end is not None:
        nodes.append(1.0)
        differences.append(x0_end - x0)
    x = toward(x0, x, s1 / s)
    if not nodes:
        return x
    scale = -h if variant is Residual.BH1 else math.expm1(-h)
    return x - _weighted([scale * rho for rho in _unified_weights(nodes, h, scale)], differences)


def _unified_weights(nodes: Sequence[float], h: float, scale: float) -> list[float]:
    """rho with sum_m rho_m r_m^(k-1) = b_k for k = 1, 2, ...: b_k is the k-th Taylor term of the step over B(h).

    For one node the authors take 1/2, to which the solution tends as h falls.
    """
    if len(nodes) == 1:
        return [0.5]
    right, phi, factorial = [], math.expm1(-h) / -h - 1, 1.0
    for k in range(1, len(nodes) + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = torch.tensor([[r**k for r in nodes] for k in range(len(nodes))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64)).tolist()
    return weights
