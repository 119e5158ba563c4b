"""A picture to the noise that it would have come from, and from there back to a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from langevin.diffusion.core import Denoiser, Step
from langevin.diffusion.guidance import clipped
from langevin.diffusion.inpainting import BoundSampler
from langevin.diffusion.inversion import INVERSIONS, Inversion, closed, fixed_point_encode
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import final
from langevin.errors import NotFiniteError, RequestError
from langevin.images.pixels import to_rgb, to_tensor
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.guided import conditioned
from langevin.model.null_text import null_text, null_text_guided
from langevin.model.precision import is_finite
from langevin.tasks.area import encoding
from langevin.tasks.from_text import HoldsBundle, bundle_of, run_numbers, text_to_image
from langevin.tasks.inversion_request import InvertRequest, RegenerateRequest
from langevin.tasks.labels import encode_label
from langevin.tasks.manifest import describe
from langevin.tasks.pictures import Given, as_input, encode_picture, resized
from langevin.tasks.plan import Plan
from langevin.tasks.prompt_files import with_prompt_files
from langevin.tasks.prompts import Texts, encode_prompts
from langevin.tasks.setup import Input

Finished = Callable[[float], object]
"""Called with the share of the work that is done, 0 to 1; raise in it to stop."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Inverted:
    """The noise that a picture would have come from, with everything that leads back."""

    request: InvertRequest
    """Completed: it asks for this inversion again."""
    x: Tensor
    """The state at the first level, float32 on the CPU: 1 C h w, or 1 2C h w for methods of two states."""
    sigmas: Tensor
    """The grid, float64, descending; it ends above 0."""
    contexts: Tensor | None = None
    """Of null-text optimisation: the fitted text states of each step, float32 n L D."""
    psnr: float
    """Decibels of the picture decoded from `x` again, as the request says, against the picture; infinity: no
    difference."""
    autoencoder_psnr: float
    """The same through the autoencoder alone: what an inversion without error gives."""
    notices: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    """Ready for JSON: the picture and the model."""
    states: tuple[Tensor, ...] = ()
    """The picture's state at each level of `sigmas`, 1 C h w, the last one the clean picture. Not kept in files."""

    @property
    def method(self) -> Inversion:
        return method_of(self.request)

    def describe(self) -> dict[str, Any]:
        """Ready for JSON, for manifests."""
        return {
            "method": self.request.inversion,
            "psnr": _finite(self.psnr),
            "autoencoder_psnr": _finite(self.autoencoder_psnr),
            "strength": self.request.turned,
        }


def invert(
    model: ModelBundle | HoldsBundle,
    picture: Given,
    request: InvertRequest,
    *,
    finished: Finished = lambda share: None,
) -> Inverted:
    """Finds the noise from which the deterministic sampler makes `picture`, and measures how well it does.

    The picture may have any mode, and is brought to the request's size or keeps its own; the prompt says what it shows.
    Without `guidance` none is used, but with null_text, which is made for the model's own. ddim and null_text walk up
    without guidance, as their papers do; the others with the request's, which they undo. Nothing depends on the seed.

    Raises RequestError where the model cannot do what is asked, NotFiniteError where the state leaves the numbers.
    """
    bundle, request = with_prompt_files(bundle_of(model), request)
    given = as_input("image", picture)
    shown, notices = fitted(given, request)
    frame = Frame.of(bundle, shown, request)
    request, info, sigmas = frame.request, frame.method, frame.sigmas
    phases = 3 if request.inversion == "null_text" else 2

    def report(phase: int, step: int) -> None:
        finished((phase + (step + 1) / (len(sigmas) - 1)) / phases)

    states = [frame.x]
    state = info.start(frame.x)
    with torch.no_grad():
        for step in _upwards(frame):
            state = step.x
            if not is_finite(state):
                raise NotFiniteError(
                    f"inversion, step {step.index + 1}: NaN or infinity at sigma {step.sigma:.4g} in "
                    f"{frame.plan.precision}: use dtype float32, less guidance or more steps"
                )
            states.append(info.picture(state))
            report(0, step.index)
    states.reverse()
    contexts = None
    if request.inversion == "null_text":
        cond, uncond = frame.texts()
        texts = []
        scale = request.guidance or 0.0
        steps = null_text(frame.diffusion, cond, uncond, states, sigmas, scale, iterations=request.most_iterations)
        for i, one in enumerate(steps):
            texts.append(one.context)
            report(1, i)
        contexts = torch.cat(texts)
    with torch.no_grad():
        denoiser = frame.denoiser(frame.diffusion, contexts)
        again = _reported(info.decode(denoiser, state, sigmas), lambda i: report(phases - 1, i))
        reached = info.picture(final(again)) * frame.plan.final_scale
        original = to_tensor(shown)
        found = _psnr(original, frame.plan.decode(reached))
        ceiling = _psnr(original, frame.plan.decode(frame.x * frame.plan.final_scale))
    return Inverted(
        request=request,
        x=state.float().cpu(),
        sigmas=sigmas,
        contexts=None if contexts is None else contexts.cpu(),
        psnr=found,
        autoencoder_psnr=ceiling,
        notices=(*notices, *frame.plan.notices, *_notices(frame, found, ceiling)),
        record={"inputs": [given.describe()], "model": describe(bundle)},
        states=tuple(states),
    )


def regenerate(model: ModelBundle | HoldsBundle, inverted: Inverted, **changes: Any) -> Plan:
    """Plans the picture that the noise leads back to; with another `prompt`, `negative` or `guidance`, another one.

    Raises RequestError where the model or the changes do not fit.
    """
    if others := changes.keys() - {"prompt", "negative", "guidance"}:
        raise RequestError(f"{min(others)} cannot be changed: the noise was found with it; invert the picture again")
    bundle, request = with_prompt_files(bundle_of(model), RegenerateRequest.of(inverted.request, **changes))
    return decoding_plan(bundle, Frame.on(bundle, request, inverted.sigmas), inverted, "regenerate")


def regenerate_picture(bundle: ModelBundle, picture: Given, request: RegenerateRequest) -> Plan:
    """The same from the picture itself, which is inverted again."""
    inverted = invert(bundle, picture, request.of_picture())
    return regenerate(bundle, inverted, prompt=request.prompt, negative=request.negative, guidance=request.guidance)


def decoding_plan(bundle: ModelBundle, frame: Frame, inverted: Inverted, task: str) -> Plan:
    """The plan of walking down from `inverted` with the frame's texts."""
    info, sigmas, plan = frame.method, frame.sigmas, frame.plan
    state = inverted.x.to(frame.diffusion.device)
    channels = plan.x.shape[1] * (2 if info.pair else 1)
    if state.shape != (1, channels, *plan.x.shape[2:]):
        raise RequestError(
            f"noise of shape {list(state.shape)}: model {bundle.info.name} takes "
            f"{[1, channels, *plan.x.shape[2:]]} for {frame.request.width} x {frame.request.height} pixels"
        )
    contexts = inverted.contexts
    wide = plan.denoiser_float32
    return replace(
        plan,
        x=info.picture(state),
        sigmas=sigmas,
        sampler=_downwards(info, state),
        calls=info.decode_calls(len(sigmas) - 1),
        denoiser=plan.denoiser if contexts is None else frame.denoiser(frame.diffusion, contexts),
        denoiser_float32=wide if contexts is None else None,
        notices=plan.notices,
        record={
            **plan.record,
            "task": task,
            "sampler": {"name": info.name},
            "sigmas": sigmas.tolist(),
            "timesteps": frame.diffusion.time(sigmas[:-1]).tolist(),
            "inversion": inverted.describe(),
            **{name: value for name, value in inverted.record.items() if name == "inputs"},
        },
    )


def fitted(given: Input, request: InvertRequest) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture as it is worked on, 8-bit RGB, upright and of the request's size, and what to say of it."""
    picture = to_rgb(given.picture)
    return resized("the picture", picture, request.width or picture.width, request.height or picture.height)


def method_of(request: InvertRequest) -> Inversion:
    """How the request's inversion walks."""
    return INVERSIONS["ddim" if request.inversion == "null_text" else request.inversion]


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """What walking up and down on one grid with one pair of texts needs."""

    bundle: ModelBundle
    plan: Plan
    """Of plain generation by the same request: its denoiser, its decoder, its notices."""
    diffusion: DiffusionModel
    """The model with the request's timetable."""
    sigmas: Tensor
    x: Tensor
    """The clean picture's state at the last level, 1 C h w; of a frame without a picture, nothing."""

    @classmethod
    def of(cls, bundle: ModelBundle, picture: Image.Image, request: InvertRequest) -> Frame:
        """The frame of a picture, in its size."""
        if request.guidance is None and request.inversion != "null_text":
            request = request.changed(guidance=1.0)
        if request.sampler is None:
            request = request.changed(sampler="ddim" if request.compat == "diffusers" else "euler")
        frame = cls.on(bundle, request.changed(width=picture.width, height=picture.height))
        clean = encode_picture(encoding(bundle.autoencoder, frame.request), picture)
        if frame.plan.x.shape[1] == 1:
            clean = clean.mean(1, keepdim=True)
        # What is decoded is the last state times `final_scale`.
        return replace(frame, x=clean.to(frame.plan.x) / frame.plan.final_scale)

    @classmethod
    def on(cls, bundle: ModelBundle, request: InvertRequest, sigmas: Tensor | None = None) -> Frame:
        """The frame of a request that states its size, on its own grid or on another's."""
        plan = text_to_image(bundle, request)
        turned = request.turned
        numbers = run_numbers(bundle.diffusion, plan.request, None if turned == 1 else turned)
        diffusion = replace(bundle.diffusion, times=numbers.times)
        if sigmas is None:
            sigmas = closed(numbers.sigmas, bundle.diffusion.schedule.sigma_min)
        if len(sigmas) < 2:
            raise RequestError(f"{len(numbers.sigmas) - 1} steps leave nothing to turn round: give more")
        return cls(bundle=bundle, plan=plan, diffusion=diffusion, sigmas=sigmas, x=plan.x[:0])

    @property
    def request(self) -> InvertRequest:
        assert isinstance(self.plan.request, InvertRequest)
        return self.plan.request

    @property
    def method(self) -> Inversion:
        return method_of(self.request)

    def all_texts(self, request: InvertRequest | None = None) -> Texts:
        """What the network is told. Raises RequestError for prompts that change over the run."""
        request = request or self.request
        if self.bundle.text is None:
            return encode_label(self.bundle, request)
        like = next(self.diffusion.network.parameters())
        with torch.no_grad():
            texts = encode_prompts(self.bundle.text, like, request, self.plan.sigmas)
        if len(texts.conditionings) > 1:
            raise RequestError("a prompt that changes over the run cannot be followed: take the [a:b:n] out")
        return texts

    def texts(self) -> tuple[Conditioning, Conditioning]:
        """The prompt's conditioning and the negative prompt's."""
        ((_, cond, uncond),) = self.all_texts().conditionings
        return cond, uncond

    def bounded(self, denoiser: Denoiser) -> Denoiser:
        """With what is known of pixels, that they lie in [-1, 1], made true, as text to image does."""
        return clipped(denoiser) if self.bundle.autoencoder is None else denoiser

    def denoiser(self, diffusion: DiffusionModel, contexts: Tensor | None) -> Denoiser:
        """What decoding asks: under guidance, with the fitted texts where there are some."""
        if contexts is None:
            return self.plan.denoiser
        cond, uncond = self.texts()
        by_step = list(contexts.to(diffusion.device)[:, None])  # n times 1 L D
        scale = self.request.guidance or 0.0
        return self.bounded(
            null_text_guided(diffusion, conditioned(diffusion, cond), uncond, by_step, self.sigmas, scale)
        )


def _upwards(frame: Frame) -> Iterator[Step]:
    request, info = frame.request, frame.method
    denoiser = frame.plan.denoiser
    if info.name == "ddim":
        if request.compat == "diffusers":
            cond, _ = frame.texts()
            denoiser = frame.bounded(conditioned(_told_the_next(frame.diffusion, frame.sigmas), cond))
        elif request.guidance != 1:
            denoiser = text_to_image(frame.bundle, request.changed(guidance=1.0)).denoiser
    state = info.start(frame.x)
    if info.name == "fixed_point":
        return fixed_point_encode(denoiser, state, frame.sigmas, iterations=request.most_iterations)
    return info.encode(denoiser, state, frame.sigmas)


def _told_the_next(diffusion: DiffusionModel, sigmas: Tensor) -> DiffusionModel:
    """The model that is told the timestep of the level above: diffusers' DDIMInverseScheduler asks the network for the
    step from one level to the next at the next one's timestep, with the state of the one."""
    levels = sigmas.flip(0)

    def times(sigma: Tensor) -> Tensor:
        above = torch.searchsorted(levels, sigma.contiguous()) + 1
        return diffusion.time(levels[above.clamp(max=len(levels) - 1)])

    return replace(diffusion, times=times)


def _downwards(info: Inversion, state: Tensor) -> BoundSampler:
    """Decoding as a plan's sampler: it is given the picture's half of the state."""

    def sampler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        start = torch.cat([x, state[:, x.shape[1] :]], 1) if info.pair else x
        for step in info.decode(denoiser, start, sigmas):
            yield step._replace(x=info.picture(step.x))

    return sampler


def _reported(steps: Iterable[Step], finished: Callable[[int], None]) -> Iterator[Step]:
    for step in steps:
        finished(step.index)
        yield step


def _psnr(original: Tensor, decoded: Tensor) -> float:
    """10 log10(2^2 / mean squared error) of pictures 1 3 H W, decoded ones clamped to [-1, 1]."""
    error = float((original - decoded.float().cpu().clamp(-1, 1)).double().square().mean())
    if not math.isfinite(error):
        raise NotFiniteError("decoding the inverted noise again gave NaN or infinity: use dtype float32 or more steps")
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def _finite(decibels: float) -> float | None:
    return decibels if math.isfinite(decibels) else None


def in_words(decibels: float) -> str:
    return f"{decibels:.2f} dB" if math.isfinite(decibels) else "no difference"


def _notices(frame: Frame, found: float, ceiling: float) -> Sequence[str]:
    request = frame.request
    alone = "" if frame.bundle.autoencoder is None else f" (the autoencoder alone: {in_words(ceiling)})"
    lines = [f"inversion {request.inversion}: the picture comes back with PSNR {in_words(found)}{alone}"]
    if request.inversion == "ddim" and request.guidance != 1 and request.negative != request.prompt:
        lines.append(
            f"ddim inversion knows no guidance: with guidance {request.guidance:g} the way down is not the way up; "
            "null_text, fixed_point, edict and bdia are made for it"
        )
    return lines
