"""A model with something added to it: a LoRA in its weights, a word in its vocabulary, another autoencoder.

The model itself stays as it was, and what did not change is shared.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from langevin.errors import CheckpointError
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import Addition, ModelBundle
from langevin.model.text import TextEncoder
from langevin.networks.clip import ClipText
from langevin.networks.lora import Adapter, merged


def with_lora(
    bundle: ModelBundle,
    parts: Mapping[str, Mapping[str, Adapter]],
    strength: float,
    addition: Addition | None = None,
) -> ModelBundle:
    """The model with adapters merged into its weights, by part ("unet", "text") and layer; 0 changes nothing.

    addition: which file they are from, for the manifest. Raises CheckpointError for a part that the model has not.
    """
    changed = _noted(bundle, addition)
    for part, layers in parts.items():
        if part == "unet":
            network = merged(bundle.diffusion.network, layers, strength)
            changed = dataclasses.replace(changed, diffusion=dataclasses.replace(changed.diffusion, network=network))
        elif part == "text" and isinstance(bundle.text, TextEncoder):
            tower = merged(bundle.text.network, layers, strength)
            changed = dataclasses.replace(changed, text=TextEncoder(tower, bundle.text.tokenizer, bundle.text.layer))
        else:
            raise CheckpointError(f"{bundle.info.name} has no {part} for a LoRA")
    return changed


def with_autoencoder(bundle: ModelBundle, autoencoder: Autoencoder, addition: Addition | None = None) -> ModelBundle:
    """The model with another autoencoder, for the same latents."""
    return dataclasses.replace(_noted(bundle, addition), autoencoder=autoencoder)


def with_word(bundle: ModelBundle, word: str, vectors: Tensor, addition: Addition | None = None) -> ModelBundle:
    """The model with one more word in its vocabulary: `vectors`, [n, D], are the embeddings of its n tokens.

    Raises CheckpointError where the text tower has another width or there is none, RequestError for a word that is
    known already.
    """
    text = bundle.text
    if not isinstance(text, TextEncoder):
        raise CheckpointError(f"{bundle.info.name} has no CLIP text encoder for the embedding {word!r}")
    if vectors.shape[1] != text.network.config.width:
        families = {768: " (Stable Diffusion 1.x)", 1024: " (Stable Diffusion 2.x)"}
        width, ours = vectors.shape[1], text.network.config.width
        raise CheckpointError(
            f"the embedding {word!r} has vectors of width {width}{families.get(width, '')}, the text encoder of "
            f"{bundle.info.name} {ours}{families.get(ours, '')}: it was made for another model"
        )
    return dataclasses.replace(_noted(bundle, addition), text=extended(text, word, vectors))


@torch.no_grad()
def extended(text: TextEncoder, word: str, vectors: Tensor) -> TextEncoder:
    """A text tower that knows one more word. All rows of its table but the new ones are those that it had."""
    tokenizer = text.tokenizer.with_word(word, len(vectors))
    first = len(text.tokenizer)
    table = text.network.text_model.embeddings.token_embedding.weight
    # A table may have more rows than there are tokens: the new ones come right behind the tokens.
    rows = torch.cat([table[:first], vectors.to(table), table[first + len(vectors) :]])
    shared = (*text.network.parameters(), *text.network.buffers())
    memo = {id(tensor): tensor for tensor in shared} | {id(table): nn.Parameter(rows, requires_grad=False)}
    network: ClipText = copy.deepcopy(text.network, memo)
    network.config = dataclasses.replace(network.config, vocabulary=len(rows))
    network.text_model.embeddings.token_embedding.num_embeddings = len(rows)
    return TextEncoder(network, tokenizer, text.layer)


def _noted(bundle: ModelBundle, addition: Addition | None) -> ModelBundle:
    info = bundle.info
    layout = None if info.layout is None else dataclasses.replace(info.layout, complete=False)
    additions = info.additions if addition is None else (*info.additions, addition)
    return dataclasses.replace(bundle, info=dataclasses.replace(info, layout=layout, additions=additions))
