"""Inpainting beyond `guidance.keep_known`: functions from denoisers and samplers to such."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate, Step
from langevin.diffusion.noise import IntervalNoise, Noise

BoundSampler = Callable[[Denoiser, Tensor, Tensor, Noise], Iterator[Step]]
"""A sampler with its options bound."""


def keep_until(denoiser: Denoiser, known: Tensor, levels: Tensor) -> Denoiser:
    """`where(sigma <= levels, D, known)`: each place is free from its own noise level on, and `known` before.

    Differential diffusion (Levin & Fried 2023, algorithm 1), whose mask is the share of the run that a place takes part
    in. known: B C H W or one for all. levels: sigma, broadcast to B C H W; below 0 is never.
    """

    def denoise(x: Tensor, sigma: float) -> Estimate:
        estimate = denoiser(x, sigma)
        # A threshold that is a level of the grid may have been rounded to x's precision.
        return estimate._replace(x0=torch.where(sigma <= levels * (1 + 1e-6), estimate.x0, known))

    return denoise


def renoised(
    sampler: BoundSampler, known: Callable[[Noise], Tensor], mask: Tensor, *, noise_first: bool = False
) -> BoundSampler:
    """A sampler whose denoiser sees `known + sigma eps` wherever the mask is not, with each picture's first noise eps
    at every level, and that ends there at `known`: how diffusers inpaints with an ordinary model.

    With samplers that add no noise of their own, from a start of that very form, it is the same as `keep_known`: there
    x stays `known + sigma eps` by itself. known: of the pictures whose noise is given, B C H W. mask: bool, True where
    the model paints. noise_first: at the first level the state is left as it is, noise alone.
    """

    def sample(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        clean, eps, first = known(noise), noise.initial(), float(sigmas[0])

        def seeing(x: Tensor, sigma: float) -> Estimate:
            if not noise_first or sigma < first:
                x = torch.where(mask, x, clean + sigma * eps)
            estimate = denoiser(x, sigma)
            return estimate._replace(x0=torch.where(mask, estimate.x0, clean))

        last = float(sigmas[-1])
        for step in sampler(seeing, x, sigmas, noise):
            if step.index == len(sigmas) - 2:
                step = step._replace(x=torch.where(mask, step.x, clean * (1 + last**2) ** 0.5))
            yield step

    return sample


def resampled(sampler: BoundSampler, rounds: int, jump: int) -> BoundSampler:
    """RePaint (Lugmayr et al. 2022, section 4.2 and algorithm 1): every `jump` intervals are done `rounds` times.

    After each round but the last the state is noised back to where it began, `x + sqrt(s^2 - s1^2) noise`, so that what
    is painted and what is known come to fit each other. Solvers with a memory begin anew with each round. Noise comes
    from each picture's stream, since a Brownian path would give the same interval the same noise again.
    """

    def sample(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        stream = Noise(
            noise.seeds,
            noise.shape,
            device=noise.device,
            dtype=noise.dtype,
            interval=IntervalNoise.STREAM,
            step_seed_offset=noise.step_seed_offset,
            skipped=noise.skipped,
        )
        count = 0
        for part in segments(sigmas, jump):
            for number in range(rounds):
                if number:
                    x = x + float((part[0] ** 2 - part[-1] ** 2).sqrt()) * stream.step()
                for step in sampler(denoiser, x, part, stream):
                    x = step.x
                    yield step._replace(index=count)
                    count += 1

    return sample


def segments(sigmas: Tensor, jump: int) -> list[Tensor]:
    """A grid in pieces of `jump` intervals, the last as long as is left: each begins where the one before it ends."""
    return [sigmas[i : i + jump + 1] for i in range(0, len(sigmas) - 1, jump)]
