"""A network with the conventions that make a denoiser of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from langevin.diffusion.core import Estimate
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.conditioning import Conditioning
from langevin.model.steering import features, residuals


@dataclass(eq=False)
class DiffusionModel:
    """Network + schedule + prediction type: prediction, dtype and timesteps are known here and nowhere above."""

    network: nn.Module
    """Called as network(z, t, context=, labels=, controls=), with adapters also features=: z is B C H W, t float32
    [B]."""
    schedule: NoiseSchedule
    prediction: Prediction
    sigma_data: float = 0.5
    """Standard deviation of the data; only EDM reads it."""
    learned_variance: bool = False
    """The network gives 2 C channels; the second half is the variance fraction in [-1, 1] (Nichol & Dhariwal 2021)."""
    times: Callable[[Tensor], Tensor] | None = None
    """Noise level to timestep, float64, any shape, where it is not the schedule's own `t`: the timetable by which
    another program's pictures are reproduced (`langevin.diffusion.compat`)."""

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def time(self, sigma: Tensor) -> Tensor:
        """The number that the network takes for a noise level: float64, sigma's shape."""
        if self.times is not None:
            return self.times(sigma)
        match self.prediction:
            case Prediction.EDM:
                return torch.log(sigma) / 4  # Karras et al. 2022, table 1: c_noise
            case Prediction.FLOW:
                return 1000 * sigma / (1 + sigma)
            case _:
                return self.schedule.t(sigma)

    def raw(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The network's own output F, float32 (or x's dtype), B C H W or B 2C H W.

        x: B C H W in variance-exploding coordinates. sigma: float64 [B].
        """
        sigma = sigma.to("cpu", torch.float64)
        c_in = self.prediction.coefficients(sigma, self.sigma_data).c_in
        z = x * per_image(c_in, x)
        if cond.concat is not None:
            z = torch.cat([z, cond.concat.to(z)], 1)
        t = self.time(sigma).to(x.device, torch.float32)
        # The only two casts: into the network's precision and back.
        z = z.to(self.dtype)
        level = float(sigma.max())
        controls = residuals([c for c in cond.controls if c.acts_at(level)], z, t, cond.context)
        # Told only where there is something to tell: other networks than the U-Net need not know of it.
        beside = {"features": found} if (found := features([a for a in cond.adapters if a.acts_at(level)])) else {}
        context = cond.context
        if context is not None and cond.images is not None:
            context = torch.cat([context, cond.images], 1)
        output: Tensor = self.network(z, t, context=context, labels=cond.labels, controls=controls, **beside)
        return output.to(x.dtype)

    def denoise(self, x: Tensor, sigma: float, cond: Conditioning) -> Estimate:
        """D(x, sigma): the expected clean sample, in x's dtype. x: B C H W; sigma: one level for the batch, > 0."""
        s = torch.tensor(sigma, dtype=torch.float64)
        raw = self.raw(x, s.expand(len(x)), cond)
        fraction = None
        if self.learned_variance:
            raw, v = raw.chunk(2, 1)
            fraction = (v + 1) / 2
        c_skip, c_out, _ = self.prediction.coefficients(s, self.sigma_data)
        # 0-dimensional float64 times float32 stays float32.
        return Estimate(c_skip * x + c_out * raw, fraction)

    def target(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """What `raw` should give: F* = (x0 - c_skip x) / c_out. sigma: float64 [B]."""
        c_skip, c_out, _ = self.prediction.coefficients(sigma.to("cpu", torch.float64), self.sigma_data)
        return (x0 - per_image(c_skip, x) * x) / per_image(c_out, x)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] in the dtype and on the device of `like` (B C H W)."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
