"""Runs a plan: step by step, so that the caller shows progress, looks at previews, or stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate, Step
from langevin.errors import NotFiniteError
from langevin.images.pixels import to_pictures
from langevin.model.precision import is_finite
from langevin.tasks.manifest import manifest
from langevin.tasks.plan import Decode, Plan


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """Pictures with everything that made them."""

    images: list[Image.Image]
    """In the order of the seeds. 8-bit RGB, or of a task that changes a picture, in that picture's mode."""
    seeds: tuple[int, ...]
    latents: Tensor
    """What was decoded, float32 N C h w on the CPU."""
    notices: tuple[str, ...]
    """What the caller should know: long prompts, parts that ran again in float32, the fast mode's difference ..."""
    batch_difference: float | None
    """Fast mode: the largest difference in x0 between picture 0 in its batch and alone, over the first network call.
    None in exact mode, where there is none."""
    plan: Plan = field(repr=False)

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """The manifest of each picture, ready for JSON. The first call hashes the weight files."""
        return [manifest(self.plan, image, index, self.notices) for index, image in enumerate(self.images)]


def run(plan: Plan) -> Run:
    """Starts a plan: iterate over the run for its steps, or call `finish()`. See `Run`."""
    return Run(plan)


class Run:
    """One execution of a plan: an iterator of Steps, then a Result.

    A Step carries the pictures that are being worked on (`images`): in exact mode one after the other, in fast mode a
    batch at a time. To cancel, stop iterating: nothing is computed between the steps that are asked for.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.images = range(0)
        """Indices of the pictures that the last step belongs to."""
        self.step: Step | None = None
        """The last step."""
        self.notices: list[str] = list(plan.notices)
        self.batch_difference: float | None = None
        self._calls = 0
        self._latents: list[Tensor] = []
        self._pictures: list[Image.Image] = []
        self._denoiser_float32: Denoiser | None = None
        self._decode_float32: Decode | None = None
        self._steps = self._execute()
        self._finished = False

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures that are done so far, in order."""
        return list(self._pictures)

    def manifest(self, index: int) -> dict[str, Any]:
        """The manifest of a picture that is done."""
        return manifest(self.plan, self._pictures[index], index, self.notices)

    @property
    def progress(self) -> float:
        """The share of the network calls that are done, 0 to 1."""
        return self._calls / (self.plan.calls * self.plan.count)

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        with torch.no_grad():  # around each step alone: a generator that held it would change the caller's mode
            self.step = next(self._steps)
        return self.step

    def preview(self) -> list[Image.Image]:
        """The last step's estimate of the clean pictures, decoded in full."""
        if self.step is None:
            return []
        with torch.no_grad():
            decoded = self.plan.decode(self.step.x0)
        return to_pictures(torch.nan_to_num(decoded))

    def finish(self) -> Result:
        """Runs what is left and gives the result. Raises NotFiniteError as iterating does."""
        for _ in self:
            pass
        if not self._finished:
            raise RuntimeError("this run was stopped by an error: start a new one with run(plan)")
        return Result(
            images=list(self._pictures),
            seeds=self.plan.request.image_seeds(),
            latents=torch.cat(self._latents),
            notices=tuple(self.notices),
            batch_difference=self.batch_difference,
            plan=self.plan,
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _execute(self) -> Iterator[Step]:
        plan = self.plan
        for number, group in enumerate(plan.groups()):
            self.images = range(group.start, group.stop)
            # A copy: a slice of a larger tensor may lie at an address where kernels take another path.
            x = plan.x[group].clone()
            denoiser = _Guarded(self, measure=number == 0 and len(x) > 1)
            for step in plan.sampler(denoiser, x, plan.sigmas, plan.noise.select(group)):
                x = step.x
                if not is_finite(x):
                    raise NotFiniteError(f"{_where(self.images, denoiser.step)}: the sampler gave NaN or infinity")
                denoiser.step = step.index + 1
                self._calls = plan.calls * group.start + min(denoiser.calls, plan.calls) * len(x)
                yield step
            x = x * plan.final_scale
            pictures = to_pictures(self._decode(x))
            self._pictures += pictures if plan.finish is None else [plan.finish(picture) for picture in pictures]
            self._latents.append(x.cpu())
            if plan.measure is not None:
                for i in self.images:
                    figures = plan.measure(self._pictures[i])
                    self.notices.append(f"picture {i}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
            self._calls = plan.calls * group.stop
        if self.batch_difference is not None:
            self.notices.append(
                f"fast mode: the first network call differs by {self.batch_difference:.2g} at most from the same "
                "picture alone (x0 of picture 0); exact mode has no difference"
            )
        self._finished = True

    def _decode(self, x: Tensor) -> Tensor:
        decoded = self.plan.decode(x)
        if is_finite(decoded):
            return decoded
        if self.plan.decode_float32 is not None:
            if self._decode_float32 is None:
                self._decode_float32 = self.plan.decode_float32()
            self.notices.append(
                f"{_which(self.images)}: decoding gave NaN or infinity in {self.plan.precision}; decoded in float32"
            )
            decoded = self._decode_float32(x)
            if is_finite(decoded):
                return decoded
        raise NotFiniteError(f"{_which(self.images)}: decoding gave NaN or infinity in float32: the weights are broken")

    def _float32(self) -> Denoiser | None:
        if self._denoiser_float32 is None and self.plan.denoiser_float32 is not None:
            self._denoiser_float32 = self.plan.denoiser_float32()
        return self._denoiser_float32


class _Guarded:
    """The plan's denoiser for one group of pictures, with every answer checked."""

    def __init__(self, run: Run, *, measure: bool) -> None:
        self.run = run
        self.current = run.plan.denoiser
        self.measure = measure
        self.calls = 0
        self.step = 0
        self.fell_back = False

    def __call__(self, x: Tensor, sigma: float) -> Estimate:
        self.calls += 1
        estimate = self.current(x, sigma)
        if not is_finite(estimate):
            estimate = self._again(x, sigma)
        if self.measure:
            self.measure = False
            alone = self.current(x[:1].clone(), sigma)
            self.run.batch_difference = float((estimate.x0[:1] - alone.x0).abs().max())
        return estimate

    def _again(self, x: Tensor, sigma: float) -> Estimate:
        """The call in float32. The rest of these pictures stays there: what overflowed once does so again."""
        where = _where(self.run.images, self.step)
        wide = None if self.fell_back else self.run._float32()
        if wide is None:
            raise NotFiniteError(f"{where}: the network gave NaN or infinity in float32 at sigma {sigma:.4g}")
        estimate = wide(x, sigma)
        if not is_finite(estimate):
            raise NotFiniteError(f"{where}: the network gave NaN or infinity at sigma {sigma:.4g}, in float32 too")
        self.run.notices.append(
            f"{where}: the network gave NaN or infinity in {self.run.plan.precision}; float32 from there on"
        )
        self.current, self.fell_back = wide, True
        return estimate


def _which(images: range) -> str:
    return f"picture {images[0]}" if len(images) == 1 else f"pictures {images[0]} to {images[-1]}"


def _where(images: range, step: int) -> str:
    return f"{_which(images)}, step {step + 1}"
