"""Prompts to conditionings: encoded once, before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from langevin.diffusion.compat import COMPAT
from langevin.diffusion.tiles import Tile
from langevin.errors import NotFiniteError
from langevin.model.conditioning import Conditioning
from langevin.model.image_prompt import ImagePrompts
from langevin.model.precision import float32_conditioning
from langevin.model.prompt import Weighting, schedule, thresholds
from langevin.model.text import EncodedText, PromptEncoder
from langevin.networks.controlnet import ControlNet
from langevin.tasks.request import GenerateRequest


@dataclass(frozen=True, eq=False)
class Texts:
    """What the network is told, over the course of the run."""

    conditionings: Sequence[tuple[float, Conditioning, Conditioning]]
    """(noise level from which on downwards it holds, prompt's, negative prompt's); the first level is infinity. Each
    conditioning is that of one image."""
    tokens: dict[str, list[dict[str, object]]]
    """For "prompt" and "negative": each text with the noise level that it starts at (None: the first) and its token
    ids."""
    notices: tuple[str, ...]

    def beside(self, given: Conditioning) -> Texts:
        """The same with all of `given` but its context, with and without the text; controls in guess mode act with the
        prompt alone."""

        def joined(told: Conditioning, *, prompt: bool) -> Conditioning:
            controls = tuple(c for c in given.controls if prompt or not c.guess)
            return replace(given, context=told.context, controls=controls)

        return replace(
            self,
            conditionings=[
                (start, joined(cond, prompt=True), joined(uncond, prompt=False))
                for start, cond, uncond in self.conditionings
            ],
        )

    def seeing(self, images: ImagePrompts) -> Texts:
        """The same with pictures beside the prompt, and with none beside the negative prompt."""

        def joined(told: Conditioning, tokens: Tensor) -> Conditioning:
            return replace(told, images=None if told.context is None else tokens.to(told.context))

        return replace(
            self,
            conditionings=[
                (start, joined(cond, images.tokens), joined(uncond, images.without))
                for start, cond, uncond in self.conditionings
            ],
        )

    def within(self, tile: Tile) -> Texts:
        """The same for a part of the picture."""
        return replace(
            self,
            conditionings=[
                (start, cond.within(tile), uncond.within(tile)) for start, cond, uncond in self.conditionings
            ],
        )

    def float32(self) -> Texts:
        """The same for a float32 network."""
        copies: dict[int, ControlNet] = {}
        return replace(
            self,
            conditionings=[
                (start, float32_conditioning(cond, copies), float32_conditioning(uncond, copies))
                for start, cond, uncond in self.conditionings
            ],
        )


def encode_prompts(text: PromptEncoder, like: Tensor, request: GenerateRequest, sigmas: Tensor) -> Texts:
    """Encodes prompt and negative prompt of a completed request, once for the whole run.

    The contexts come out in the precision and on the device of `like`, and all of one length.
    """
    weighting = Weighting.of(request.weighting or "a1111")
    levels = sigmas.tolist()
    changes = {
        name: thresholds(schedule(prompt, len(levels) - 1, weighting), levels)
        for name, prompt in (("prompt", request.prompt or ""), ("negative", request.negative))
    }
    texts = {name: list(dict.fromkeys(words for _, words in steps)) for name, steps in changes.items()}
    if not COMPAT[request.compat].own_prompt_lengths:
        both = list(dict.fromkeys([*texts["prompt"], *texts["negative"]]))
        texts = {"prompt": both, "negative": both}
    encoded = {"prompt": _encode(text, texts["prompt"], request)}
    same = texts["negative"] == texts["prompt"]
    encoded["negative"] = encoded["prompt"] if same else _encode(text, texts["negative"], request)
    # Attention over keys that are repeated is attention over the keys: so each prompt keeps its own length.
    length = math.lcm(*(one.context.shape[1] for one, _ in encoded.values()))

    def context(name: str, start: float) -> Conditioning:
        words = next(words for level, words in reversed(changes[name]) if start <= level)
        states = encoded[name][0].context[texts[name].index(words)][None]
        return Conditioning(context=states.repeat(1, length // states.shape[1], 1).to(like.device, like.dtype))

    starts = sorted({start for steps in changes.values() for start, _ in steps}, reverse=True)
    return Texts(
        conditionings=[(start, context("prompt", start), context("negative", start)) for start in starts],
        tokens={
            name: [
                {
                    "from_sigma": None if math.isinf(start) else start,
                    "ids": list(encoded[name][0].token_ids[texts[name].index(words)]),
                }
                for start, words in steps
            ]
            for name, steps in changes.items()
        },
        notices=tuple(dict.fromkeys(n for one, notices in encoded.values() for n in (*one.notices, *notices))),
    )


def _encode(text: PromptEncoder, prompts: list[str], request: GenerateRequest) -> tuple[EncodedText, list[str]]:
    def encode(encoder: PromptEncoder) -> EncodedText:
        return encoder.encode(
            prompts,
            clip_skip=request.clip_skip,
            weighting=request.weighting or "a1111",
            long=request.long or "chunk",
        )

    half = next(text.network.parameters()).dtype
    try:
        return encode(text), []
    except NotFiniteError:
        if half == torch.float32:
            raise
    return encode(text.float32()), [f"the text encoder gave NaN or infinity in {_name(half)}; it ran in float32"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
