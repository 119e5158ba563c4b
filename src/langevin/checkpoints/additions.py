"""LoRA, embedding and autoencoder files put into a loaded model: paths, or names in $LANGEVIN_MODELS."""

from __future__ import annotations

import math
from pathlib import Path

from langevin.checkpoints.autoencoders import load_autoencoder
from langevin.checkpoints.embeddings import read_embedding
from langevin.checkpoints.lora import read_lora
from langevin.checkpoints.lora_defaults import lora_defaults, with_defaults
from langevin.checkpoints.model_folders import FileKind, resolve
from langevin.errors import CheckpointError, RequestError
from langevin.model.adapted import with_autoencoder, with_lora, with_word
from langevin.model.bundle import Addition, ModelBundle, SourceFile


def add_lora(bundle: ModelBundle, path: str | Path, strength: float = 1.0) -> ModelBundle:
    """The model with a LoRA file at a strength: 1 as it was trained, 0 not at all, below 0 away from it. What the file
    says of sampler, steps and guidance is the model's default then.

    Raises CheckpointError for a file that does not fit the model, RequestError for a strength that is not finite.
    """
    if not math.isfinite(strength):
        raise RequestError(f"the strength {strength} of {path} is not a finite number: 1 is as it was trained")
    source = _source("lora", path)
    changed = with_lora(bundle, read_lora(source.path, bundle), strength, Addition("lora", source, strength=strength))
    stated = lora_defaults(source.path) if strength > 0 else None
    return changed if stated is None else with_defaults(changed, stated)


def add_embedding(bundle: ModelBundle, path: str | Path, word: str | None = None) -> ModelBundle:
    """The model with the word of an embedding file; `word` calls it otherwise than the file does.

    Raises CheckpointError for a file that does not fit the model, RequestError for a word that is known already.
    """
    source = _source("embedding", path)
    token, vectors = read_embedding(source.path)
    token = token if word is None else word
    return with_word(bundle, token, vectors, Addition("embedding", source, word=token))


def set_autoencoder(
    bundle: ModelBundle, source: str | Path, *, allow_pickle: bool = False, revision: str | None = None
) -> ModelBundle:
    """The model with the autoencoder of a file, a folder, a name or a Hub id in place of its own.

    Raises CheckpointError for one that does not fit the model's latents.
    """
    autoencoder, file = load_autoencoder(source, bundle, allow_pickle=allow_pickle, revision=revision)
    return with_autoencoder(bundle, autoencoder, Addition("vae", file))


def split_lora(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:0.8`: a path and a strength."""
    path, colon, number = text.rpartition(":")
    try:
        return (path, float(number)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0


def split_embedding(text: str) -> tuple[str, str | None]:
    """`FILE` or `FILE:WORD`: a path and another word for it."""
    path, colon, word = text.rpartition(":")
    if not colon or not path or not word or Path(text).exists():
        return text, None
    return path, word


def _source(kind: FileKind, path: str | Path) -> SourceFile:
    path = resolve(kind, path)
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file; expected a .safetensors file")
    return SourceFile(path, path.stat().st_size)
