"""Samplers: each one generator `sampler(denoiser, x, sigmas, noise, **options) -> Iterator[Step]`.

A sampler sees the denoiser and neighbouring sigmas, never a timestep, a prompt or a network.
"""

from langevin.diffusion.samplers.registry import SAMPLERS, Option, Sampler, SamplerInfo, final, get_sampler

__all__ = ["SAMPLERS", "Option", "Sampler", "SamplerInfo", "final", "get_sampler"]
