"""Prompts to the states that a diffusion network attends to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

import torch
from torch import Tensor, nn

from langevin.errors import CheckpointError, NotFiniteError, RequestError
from langevin.model.chunks import Chunk, Layout, Long, empty_chunk, layout
from langevin.model.precision import float32_copy
from langevin.model.prompt import ParsedPrompt, Weighting, parse
from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import ClipText


@dataclass(frozen=True, eq=False)
class EncodedText:
    """Prompts as the diffusion network is given them."""

    context: Tensor
    """Text states B L D, L = 77 times the chunks of the longest prompt, in the text network's dtype."""
    chunks: tuple[tuple[Chunk, ...], ...]
    """The chunks of each prompt, the empty ones included that bring all of them to the same number."""
    notices: tuple[str, ...]
    """What the user should know: long prompts, what was cut."""

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """For each prompt its L token ids."""
        return tuple(tuple(i for chunk in chunks for i in chunk.ids) for chunks in self.chunks)

    @property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """For each prompt the L weights of its tokens."""
        return tuple(tuple(w for chunk in chunks for w in chunk.weights) for chunks in self.chunks)


class PromptEncoder(Protocol):
    """What makes contexts of texts: `TextEncoder`, or an encoder of the transformers library."""

    calls: int
    """How often the network was run by `encode`."""

    @property
    def network(self) -> nn.Module: ...

    def encode(
        self,
        prompts: Sequence[str | ParsedPrompt],
        *,
        clip_skip: int = 0,
        weighting: Weighting | str = Weighting.A1111,
        long: Long | str = Long.CHUNK,
    ) -> EncodedText:
        """The context of each prompt, B L D, in generation."""

    def states(self, captions: Sequence[str]) -> Tensor:
        """The context of each caption, taken literally, B L D, in training."""

    def float32(self) -> PromptEncoder:
        """The same with float32 weights."""


class TextEncoder:
    """A CLIP text tower with its tokenizer."""

    def __init__(self, network: ClipText, tokenizer: Tokenizer, layer: int = -1) -> None:
        """layer: whose states are the context, -1 the last, -2 the last but one (Stable Diffusion 2.x as published).

        Raises CheckpointError where network and tokenizer do not belong together.
        """
        config = network.config
        if tokenizer.largest_id >= config.vocabulary:
            raise CheckpointError(
                f"the tokenizer has ids up to {tokenizer.largest_id}, the text network {config.vocabulary} embeddings"
            )
        if tokenizer.max_length > config.positions:
            raise CheckpointError(
                f"the tokenizer makes {tokenizer.max_length} tokens, the text network has {config.positions} positions"
            )
        self.network = network
        self.tokenizer = tokenizer
        self.layer = layer
        self.calls = 0
        """How often the network was run by `encode`: a run needs each text once, whatever its steps."""

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str | ParsedPrompt],
        *,
        clip_skip: int = 0,
        weighting: Weighting | str = Weighting.A1111,
        long: Long | str = Long.CHUNK,
    ) -> EncodedText:
        """The context of each prompt, B L D. Prompts hold no switches any more (see `langevin.model.prompt.schedule`).

        clip_skip: layers left out beyond those that the model leaves out itself. 0 is the model's own layer; k is
        diffusers' clip_skip=k, and A1111's "Clip skip" k + 1 for Stable Diffusion 1.x.
        weighting: the syntax of prompts given as text, and how their weights act. A ParsedPrompt brings its own.
        long: what becomes of prompts with more than 75 tokens.

        Each window goes through the network by itself, and equal ones once, so that no prompt's states depend on
        which others are beside it; only the number of chunks does: a shorter prompt is filled up with empty chunks.
        Raises RequestError for a clip_skip out of bounds, for prompts that cannot be encoded, and for weights that
        carry the states out of the range of their dtype; NotFiniteError where the network itself gives NaN or infinity.
        """
        if not prompts:
            raise RequestError("no prompt was given; the empty prompt is ''")
        layer = self.layer_after(clip_skip)
        parsed = [parse(p, Weighting.of(weighting)) if isinstance(p, str) else p for p in prompts]
        layouts = [layout(p, self.tokenizer, Long.of(long)) for p in parsed]
        filled = _filled_up(layouts, empty_chunk(self.tokenizer))
        known: dict[tuple[int, ...], Tensor] = {}

        def states(chunk: Chunk) -> Tensor:  # 1 77 D
            if chunk.ids not in known:
                known[chunk.ids] = self._run(chunk.ids, layer)
            return known[chunk.ids]

        empty = empty_chunk(self.tokenizer)
        context = torch.cat(
            [
                torch.cat([_weighted(chunk, states, empty, prompt.weighting) for chunk in chunks], 1)
                for chunks, prompt in zip(filled, parsed, strict=True)
            ]
        )
        return EncodedText(context, filled, tuple(dict.fromkeys(n for one in layouts for n in one.notices)))

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """int64 [B, 77]: each caption taken literally, cut to 75 tokens, between start and end token, padded."""
        lines = [self.tokenizer.padded(self.tokenizer.encode(caption)) for caption in captions]
        return torch.tensor(lines, dtype=torch.int64).view(len(lines), self.tokenizer.max_length)

    def states(self, captions: Sequence[str]) -> Tensor:
        """Text states B 77 D of captions taken literally, cut to 75 tokens."""
        device = next(self.network.parameters()).device
        states: Tensor = self.network(self.tokens(captions).to(device), layer=self.layer).states
        return states

    def float32(self) -> TextEncoder:
        """The same with float32 weights."""
        wide = copy.copy(self)
        wide.network = float32_copy(self.network)
        return wide

    def layer_after(self, clip_skip: int) -> int:
        """The layer that `clip_skip` asks for. Raises RequestError where the network has no such layer."""
        most = self.network.config.layers + self.layer
        if not 0 <= clip_skip <= most:
            raise RequestError(f"clip_skip {clip_skip} is out of bounds: this text network allows 0 to {most}")
        return self.layer - clip_skip

    def _run(self, ids: tuple[int, ...], layer: int) -> Tensor:
        self.calls += 1
        device = next(self.network.parameters()).device
        states: Tensor = self.network(torch.tensor([ids], device=device), layer).states
        if not states.isfinite().all():
            name = str(states.dtype).removeprefix("torch.")
            raise NotFiniteError(
                f"the text network gave NaN or infinity in {name}: its weights are broken or too large"
            )
        return states


def _filled_up(layouts: Sequence[Layout], empty: Chunk) -> tuple[tuple[Chunk, ...], ...]:
    most = max(len(one.chunks) for one in layouts)
    return tuple((*one.chunks, *[empty] * (most - len(one.chunks))) for one in layouts)


def _weighted(chunk: Chunk, states: Callable[[Chunk], Tensor], empty: Chunk, weighting: Weighting) -> Tensor:
    """The chunk's states with its weights in effect, 1 77 D."""
    plain = states(chunk)
    if not chunk.weighted:
        return plain
    z = plain.float()
    w = torch.tensor(chunk.weights, dtype=torch.float32, device=z.device).view(1, -1, 1)
    match weighting:
        case Weighting.A1111:
            weighted = z * w
            weighted = weighted * (z.mean() / weighted.mean())
        case Weighting.COMFYUI:
            neutral = states(empty).float()
            weighted = torch.where(w == 1, z, (z - neutral) * w + neutral)
        case Weighting.NONE:  # literal text has no weights
            weighted = z
        case _:
            assert_never(weighting)
    weighted = weighted.to(plain.dtype)
    if not weighted.isfinite().all():
        raise RequestError(
            f"prompt: its weights, {min(chunk.weights):g} to {max(chunk.weights):g}, give text states that are not "
            "finite; use weights nearer to 1"
        )
    return weighted
