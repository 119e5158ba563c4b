"""Figures of single pictures: reconstructions against their originals, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.diffusion.core import Estimate
from langevin.diffusion.noise import Noise
from langevin.errors import RequestError
from langevin.evaluation.figures import Figure
from langevin.evaluation.generation import classes_of, label_of, network_config, told
from langevin.evaluation.likelihood import (
    ReverseVariance,
    bits_per_dim,
    dequantised,
    ode_log_likelihood,
    variational_bound,
)
from langevin.evaluation.pictures import psnr, ssim
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning

PROBES = 1
_SMALLEST_FOR_SSIM = 11


@torch.no_grad()
def reconstruction_figures(bundle: ModelBundle, pictures: Tensor, *, seed: int = 0, batch: int = 16) -> list[Figure]:
    """PSNR in decibels and SSIM of real pictures through the autoencoder and back, by the mean of each latent.

    pictures: uint8 N 3 H W. Mean and deviation over the pictures. Raises RequestError for a model without an
    autoencoder, or a size that it does not take.
    """
    decibels, similarities = [], []
    for original, copy in _copies(bundle, pictures, batch):
        decibels.append(psnr(original, copy))
        if min(original.shape[-2:]) >= _SMALLEST_FOR_SSIM:
            similarities.append(ssim(original, copy))
    return [
        _mean(name, torch.cat(values), len(pictures), seed)
        for name, values in (("psnr", decibels), ("ssim", similarities))
        if values
    ]


@torch.no_grad()
def reconstructed(bundle: ModelBundle, pictures: Tensor, batch: int = 16) -> Tensor:
    """Pictures through the autoencoder and back, uint8 N 3 H W. RequestError as `reconstruction_figures` has it."""
    copies = [((copy + 1) * 127.5).round().to(torch.uint8) for _, copy in _copies(bundle, pictures, batch)]
    return torch.cat(copies) if copies else pictures


def _copies(bundle: ModelBundle, pictures: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in [-1, 1]: pictures, and what becomes of them by the mean of each latent."""
    codec = bundle.autoencoder
    if codec is None:
        raise RequestError(f"reconstruction: model {bundle.info.name} works on pixels and has no autoencoder")
    f = codec.downsampling
    if pictures.shape[-1] % f or pictures.shape[-2] % f:
        height, width = pictures.shape[-2:]
        raise RequestError(f"reconstruction: {width} x {height} pixels: the autoencoder takes multiples of {f}")
    for part in pictures.split(batch):
        original = part.float() / 127.5 - 1
        yield original, codec.decode(codec.encode(original.to(codec.device))).float().cpu().clamp(-1, 1)


def likelihood_figures(
    bundle: ModelBundle,
    pictures: Tensor,
    records: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    steps: int = 100,
    batch: int = 16,
    finished: Callable[[int], object] = lambda done: None,
) -> list[Figure]:
    """Bits per dimension of real pictures: by the probability-flow ODE, and the variational bound where there is one.

    pictures: uint8 N 3 H W; grey ones are measured in one channel where the model has one. records: their captions or
    labels, for models that are told them; no guidance. seed: picture i has the noise of `seed + i`. steps: intervals of
    the ODE's grid, even in log sigma over the model's levels. The bound takes all levels of a discrete-time schedule
    (Ho et al. 2020, equation 5), with the learned variance where the model has it, else the larger fixed one.
    `finished` is called with the number of pictures done.

    Raises RequestError for a model of latents, whose likelihood is not one of pixels, or for too few steps.
    """
    if bundle.autoencoder is not None:
        raise RequestError(f"bits: model {bundle.info.name} works on latents; bits per dimension are those of pixels")
    if steps < 2:
        raise RequestError(f"likelihood steps {steps}: at least 2 are needed")
    schedule = bundle.diffusion.schedule
    low, high = float(schedule.sigma_min), float(schedule.sigma_max)
    if not math.isfinite(high):
        raise RequestError("bits: the schedule ends at pure noise, from which no likelihood can be followed")
    grid = torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)
    variance = ReverseVariance.LEARNED if bundle.diffusion.learned_variance else ReverseVariance.FIXED_LARGE
    flow, bound = [], []
    for start in range(0, len(pictures), batch):
        x0 = _in_channels(bundle, pictures[start : start + batch])
        cond = _conditioning(bundle, records[start : start + batch])

        def denoiser(x: Tensor, sigma: float, cond: Conditioning = cond) -> Estimate:
            return bundle.diffusion.denoise(x, sigma, cond)

        seeds = range(seed + start, seed + start + len(x0))
        device, shape = bundle.diffusion.device, tuple(x0.shape[1:])
        x0 = x0.to(device)
        noise = Noise(seeds, shape, device=device)
        density = ode_log_likelihood(denoiser, dequantised(x0, noise), grid, noise, probes=PROBES)
        flow.append(bits_per_dim(density, math.prod(shape)).cpu())
        noise = Noise(seeds, shape, device=device)
        bound.append(variational_bound(denoiser, x0, schedule, noise, variance=variance).total.cpu())
        finished(start + len(x0))
    count = len(pictures)
    # At the smallest level the data is taken as it is: no more is said about levels below.
    ode = {"steps": steps, "probes": PROBES, "sigma": [low, high]}
    levels = {"levels": len(schedule), "variance": str(variance)}
    return [
        _mean("bits/dim (ODE)", torch.cat(flow), count, seed, "lower", ode),
        _mean("bits/dim (bound)", torch.cat(bound), count, seed, "lower", levels),
    ]


def _mean(
    name: str, values: Tensor, count: int, seed: int, better: str = "higher", settings: dict[str, Any] | None = None
) -> Figure:
    return Figure(
        name=name,
        value=float(values.mean()),
        better="lower" if better == "lower" else "higher",
        deviation=float(values.std(correction=0)),
        reference=count,
        seed=seed,
        settings=settings or {},
    )


def _in_channels(bundle: ModelBundle, pictures: Tensor) -> Tensor:
    """B C H W in [-1, 1], with the channels of the network. RequestError where colour would be lost."""
    channels = network_config(bundle).in_channels
    x0 = pictures.float() / 127.5 - 1
    if channels == 1:
        if not torch.equal(pictures, pictures[:, :1].expand_as(pictures)):
            raise RequestError("bits: the model has one channel, the pictures have colour")
        return x0[:, :1]
    return x0


def _conditioning(bundle: ModelBundle, records: Sequence[Mapping[str, Any]]) -> Conditioning:
    match told(bundle):
        case "captions":
            text = bundle.text
            assert text is not None
            captions = [str(record["caption"]) for record in records]
            context = text.encode(captions, weighting="none", long="truncate").context
            return Conditioning(context=context.to(next(bundle.diffusion.network.parameters())))
        case "classes":
            labels = torch.tensor([label_of(record, classes_of(bundle)[0]) for record in records])
            return Conditioning(labels=labels.to(bundle.diffusion.device))
        case _:
            return Conditioning()
