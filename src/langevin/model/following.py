"""Prompt-to-prompt (Hertz et al. 2023): a denoiser whose attention follows that of another text on another state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import torch
from torch import Tensor

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.grids import level_at
from langevin.diffusion.guidance import switch_at
from langevin.model.conditioning import Conditioning, concatenate
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.guided import conditioned, repeated
from langevin.networks.attention_control import TokenMap, controlled


def token_map(
    source: Sequence[int], target: Sequence[int], emphasis: Sequence[tuple[Sequence[int], float]] = ()
) -> TokenMap:
    """Which tokens of two texts belong together, from their ids.

    Equal stretches take over the source's attention token by token (refinement); a stretch that stands in the place of
    another takes over that one's, shared out evenly (word swap); what was put in between keeps its own. emphasis: (ids
    of a word, factor): its attention is multiplied wherever the target has these ids in a row. Raises ValueError where
    it has not.
    """
    matrix = torch.zeros(len(source), len(target))
    share, weight = torch.zeros(len(target)), torch.ones(len(target))
    for kind, i, i_end, j, j_end in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if kind == "equal":
            matrix[range(i, i_end), range(j, j_end)] = 1
            share[j:j_end] = 1
        elif kind == "replace":
            matrix[i:i_end, j:j_end] = 1 / (j_end - j)
            share[j:j_end] = 1
    for word, factor in emphasis:
        places = places_of(word, target)
        if not places:
            raise ValueError(f"tokens {list(word)} are not in the text")
        weight[places] = factor
    return TokenMap(matrix, share, weight)


def places_of(word: Sequence[int], text: Sequence[int]) -> list[int]:
    """Every place in a text's ids at which a token of the word stands, wherever the word does as a whole."""
    starts = [j for j in range(len(text)) if word and list(text[j : j + len(word)]) == list(word)]
    return sorted({j + k for j in starts for k in range(len(word))})


def following(
    model: DiffusionModel,
    source: Conditioning,
    target: Conditioning,
    states: Mapping[float, Tensor],
    tokens: TokenMap,
    sigmas: Tensor,
    *,
    cross: float = 0.8,
    pixels: float = 0.4,
    always: bool = False,
) -> Denoiser:
    """D of `target` whose attention follows what the network attends to for `source` at `states`.

    states: the source's state, 1 C h w, at each level of the grid that a step starts from; no other level may be asked
    for. cross, pixels: the shares of the run, from its beginning, in which attention to the text and self-attention
    follow (0.8 and 0.4 in the authors' examples). Emphasis of `tokens` acts as long as `cross` does. always: the source
    stays beside the target where nothing follows it, so that the attention of both can be watched.
    """

    def part(share: float) -> Denoiser:
        with_text, with_pixels = share < cross, share < pixels
        if not (with_text or with_pixels or always):
            return conditioned(model, target)
        idle = tokens.idle() if always else None
        network = controlled(model.network, cross=tokens if with_text else idle, pixels=with_pixels)
        return _beside(replace(model, network=network), source, target, states)

    ends = sorted({0.0, cross, pixels} - {1.0})
    first, *later = [(level_at(sigmas, share), part(share)) for share in ends]
    return switch_at(first[1], *later)


def _beside(
    model: DiffusionModel, source: Conditioning, target: Conditioning, states: Mapping[float, Tensor]
) -> Denoiser:
    """The target's estimates from one call with the source in front: what the controlled network expects."""

    def denoiser(x: Tensor, sigma: float) -> Estimate:
        both = concatenate([source, repeated(target, len(x))])
        estimate = model.denoise(torch.cat([states[sigma].to(x), x]), sigma, both)
        fraction = estimate.variance_fraction
        return Estimate(estimate.x0[1:], None if fraction is None else fraction[1:])

    return denoiser
