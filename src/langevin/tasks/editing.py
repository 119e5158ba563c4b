"""Editing by inversion: a picture, what it shows, what it shall show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, assert_never

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.diffusion.core import Denoiser, Step
from langevin.diffusion.diffedit import changed_where, disagreement
from langevin.diffusion.grids import level_at
from langevin.diffusion.guidance import guided, limited
from langevin.diffusion.noise import Noise
from langevin.diffusion.prediction import Prediction
from langevin.errors import RequestError
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.following import following, places_of, token_map
from langevin.model.guided import conditioned
from langevin.model.local_blend import LocalBlend
from langevin.model.null_text import null_text_guided
from langevin.model.precision import float32_conditioning, float32_model
from langevin.model.text import TextEncoder
from langevin.networks.attention_control import TokenMap
from langevin.tasks.from_text import HoldsBundle, bundle_of
from langevin.tasks.inversion import Finished, Frame, Inverted, decoding_plan, fitted, invert
from langevin.tasks.inversion_request import EditRequest
from langevin.tasks.options import show
from langevin.tasks.pictures import Given, as_input
from langevin.tasks.plan import Plan
from langevin.tasks.prompt_files import take_files, with_prompt_files


def edit(
    model: ModelBundle | HoldsBundle,
    picture: Given,
    request: EditRequest,
    *,
    finished: Finished = lambda share: None,
) -> Plan:
    """Plans a picture that is changed from what `request.source` says to what `request.prompt` says.

    The inversion is done here, since the plan begins with what it finds; `finished` hears of it. Its PSNR is among the
    plan's notices and in its record. Raises RequestError as `invert` does, and where the two texts cannot be compared.
    """
    if take_files(request.changed(prompt=request.source))[1] != take_files(request.changed(prompt=""))[1]:
        raise RequestError(f"source {show(request.source)} names a file: name it in the new text, for both")
    bundle, request = with_prompt_files(bundle_of(model), request)
    if bundle.text is None:
        raise RequestError(f"model {bundle.info.name} takes no text: editing needs a text-to-image model")
    given = as_input("image", picture)
    if request.guidance is None:
        request = request.changed(guidance=bundle.info.default_guidance)
    request = request.changed(negative=request.against, strength=request.turned)
    words = _emphasised(bundle, request)
    inverted = invert(bundle, given, request.of_source(), finished=finished)
    done = inverted.request
    request = request.changed(width=done.width, height=done.height, sampler=done.sampler)
    frame = Frame.on(bundle, request, inverted.sigmas)
    plan = decoding_plan(bundle, frame, inverted, "edit")
    plan = replace(plan, notices=tuple(dict.fromkeys((*inverted.notices, *plan.notices))))
    match request.method:
        case "plain":
            return plan
        case "prompt_to_prompt":
            return _prompt_to_prompt(frame, plan, inverted, words)
        case "diffedit":
            return _diffedit(frame, plan, inverted, fitted(given, frame.request)[0])
        case _:
            assert_never(request.method)


# -- prompt to prompt ----------------------------------------------------------------------------------------------


def _prompt_to_prompt(frame: Frame, plan: Plan, inverted: Inverted, words: list[tuple[list[int], float]]) -> Plan:
    """The plan whose attention follows that of the picture's own states (Hertz et al. 2023)."""
    request = _request(frame)
    source, _, source_ids = _told(frame, request.changed(prompt=request.source))
    target, uncond, target_ids = _told(frame, request)
    if len(source_ids) != len(target_ids) or _length(source) != _length(target):
        raise RequestError(
            f"the two texts fill {len(source_ids)} and {len(target_ids)} tokens: prompt_to_prompt compares texts that "
            "take the text network equally often; shorten one, or use method plain"
        )
    try:
        tokens = token_map(source_ids, target_ids, words)
    except ValueError:
        raise RequestError(f"emphasis: not all of {show(list(request.emphasis))} are words of the new text") from None
    states = dict(zip(inverted.sigmas.tolist(), inverted.states, strict=True))
    parts = _Parts(frame, request, inverted.contexts, source, target, uncond, tokens, states)
    if request.local:
        plan = replace(plan, sampler=_local_blend(frame, inverted, source_ids, target_ids))
    return replace(
        plan,
        denoiser=parts.denoiser(frame.diffusion),
        denoiser_float32=parts.denoiser_float32 if frame.diffusion.dtype != torch.float32 else None,
        record={**plan.record, "edit": {"method": request.method, "tokens_followed": int(tokens.share.sum())}},
    )


@dataclass(frozen=True, eq=False)
class _Parts:
    """What the denoiser of prompt to prompt is made of."""

    frame: Frame
    request: EditRequest
    contexts: Tensor | None
    source: Conditioning
    target: Conditioning
    uncond: Conditioning
    tokens: TokenMap
    states: dict[float, Tensor]

    def denoiser(self, diffusion: DiffusionModel) -> Denoiser:
        request, sigmas = self.request, self.frame.sigmas
        cond = following(
            diffusion,
            self.source,
            self.target,
            self.states,
            self.tokens,
            sigmas,
            cross=request.cross_share,
            pixels=request.self_share,
            always=bool(request.local),
        )
        scale = request.guidance or 0.0
        if self.contexts is not None:
            by_step = list(self.contexts.to(diffusion.device)[:, None])
            return self.frame.bounded(null_text_guided(diffusion, cond, self.uncond, by_step, sigmas, scale))
        space = diffusion.prediction if request.compat == "diffusers" else Prediction.X0
        both = guided(cond, conditioned(diffusion, self.uncond), scale, request.rescale, space=space)
        if request.guidance_interval is not None:
            both = limited(both, cond, *request.guidance_interval)
        return self.frame.bounded(both)

    def denoiser_float32(self) -> Denoiser:
        source, target, uncond = map(float32_conditioning, (self.source, self.target, self.uncond))
        return replace(self, source=source, target=target, uncond=uncond).denoiser(float32_model(self.frame.diffusion))


def _local_blend(frame: Frame, inverted: Inverted, source: list[int], target: list[int]) -> LocalBlend:
    """The sampler that keeps the picture's own states where attention is not on the words of `local`."""
    request, text = _request(frame), frame.bundle.text
    if not isinstance(text, TextEncoder):
        raise RequestError(f"local: the text encoder of {frame.bundle.info.name} does not say which tokens a word has")
    found: tuple[list[int], list[int]] = ([], [])
    for word in request.local:
        ids = text.tokenizer.encode(word)
        there = [places_of(ids, told) for told in (source, target)]
        if not any(there):
            raise RequestError(f"local: {show(word)} is in neither text: give words of what the picture shows or shall")
        for places, more in zip(found, there, strict=True):
            places.extend(more)
    return LocalBlend(inverted.states, *found, request.local_threshold)


def _request(frame: Frame) -> EditRequest:
    """As completed."""
    assert isinstance(frame.request, EditRequest)
    return frame.request


def _told(frame: Frame, request: EditRequest) -> tuple[Conditioning, Conditioning, list[int]]:
    """The prompt's conditioning, the negative prompt's, and the prompt's token ids."""
    texts = frame.all_texts(request)
    ((_, cond, uncond),) = texts.conditionings
    ids: Any = texts.tokens["prompt"][0]["ids"]
    return cond, uncond, list(ids)


def _length(cond: Conditioning) -> int:
    return 0 if cond.context is None else cond.context.shape[1]


def _emphasised(bundle: ModelBundle, request: EditRequest) -> list[tuple[list[int], float]]:
    """The token ids of each emphasised word with its factor."""
    if not request.emphasis:
        return []
    if not isinstance(bundle.text, TextEncoder):
        raise RequestError(f"emphasis: the text encoder of {bundle.info.name} does not say which tokens a word has")
    return [(bundle.text.tokenizer.encode(word), factor) for word, factor in request.emphasis.items()]


# -- DiffEdit ------------------------------------------------------------------------------------------------------


def _diffedit(frame: Frame, plan: Plan, inverted: Inverted, picture: Image.Image) -> Plan:
    """The plan that changes the picture only where the two texts disagree (Couairon et al. 2023)."""
    request, diffusion, whole = _request(frame), frame.diffusion, frame.plan.sigmas
    source, _, _ = _told(frame, request.changed(prompt=request.source))
    target, _, _ = _told(frame, request)
    level = level_at(whole, 1 - request.mask_level)
    clean = inverted.states[-1]
    streams = Noise(request.image_seeds(), tuple(clean.shape[1:]), device=clean.device)
    with torch.no_grad():
        first, second = (frame.bounded(conditioned(diffusion, cond)) for cond in (source, target))
        noises = [streams.initial(), *(streams.step() for _ in range(request.mask_samples - 1))]
        mask = disagreement(first, second, clean, level, noises)  # 1 1 h w
    codec = frame.bundle.autoencoder
    share = float(mask.float().mean())
    if share == 0:
        raise RequestError("the two texts do not disagree anywhere on this picture: nothing would be changed")

    def sampler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        return changed_where(mask, inverted.states, denoiser, x, sigmas)

    return replace(
        plan,
        sampler=sampler,
        finish=_kept_outside(mask, picture, 1 if codec is None else codec.downsampling),
        notices=(*plan.notices, f"diffedit: {share:.0%} of the picture is changed, the pixels outside are kept"),
        record={**plan.record, "edit": {"method": request.method, "mask_share": share}},
    )


def _kept_outside(mask: Tensor, original: Image.Image, factor: int) -> Callable[[Image.Image], Image.Image]:
    """Brings back the original's pixels outside the mask, bit for bit: the autoencoder would change them too. factor:
    pixels along one side of a cell of the mask."""
    large = mask[0, 0].cpu().repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    width, height = original.size
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2  # as decoding cuts
    inside = large[top : top + height, left : left + width].numpy()

    def finish(picture: Image.Image) -> Image.Image:
        return Image.fromarray(np.where(inside[..., None], np.asarray(picture), np.asarray(original)), "RGB")

    return finish
