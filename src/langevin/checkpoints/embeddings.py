"""Textual-inversion embeddings (Gal et al. 2022): a few vectors that stand for a new word.

Both safetensors layouts: AUTOMATIC1111's, one tensor `emb_params` whose word is the file's name, and that of diffusers,
one tensor under the word itself.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, assert_never

from torch import Tensor

from langevin.checkpoints.pickled import SUFFIXES as PICKLED
from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import FLOATS, TensorInfo, dtype_name, in_words
from langevin.errors import CheckpointError

_A1111_KEY = "emb_params"


class EmbeddingLayout(StrEnum):
    A1111 = "a1111"
    DIFFUSERS = "diffusers"


class Embedding(NamedTuple):
    """A word and its vectors."""

    token: str
    vectors: Tensor
    """float32 [n, D], n >= 1: the embeddings of n successive tokens."""


def read_embedding(path: str | os.PathLike[str]) -> Embedding:
    """Either layout. Raises CheckpointError where the file is something else, or of another format."""
    path = Path(path)
    if path.suffix.lower() in PICKLED or path.suffix.lower() in (".png", ".webp"):
        raise CheckpointError(f"{path}: embeddings are read from .safetensors files; convert it first")
    file = SafetensorsFile(path)
    if {"clip_l", "clip_g"} & set(file.tensors):
        raise CheckpointError(f"{path}: an embedding for Stable Diffusion XL (clip_l, clip_g); it has no use here")
    if len(file.tensors) != 1:
        raise CheckpointError(
            f"{path}: {len(file.tensors)} tensors ({in_words(file.tensors)}); expected an embedding, which has one"
        )
    ((name, info),) = file.tensors.items()
    if len(info.shape) not in (1, 2) or not info.elements or info.dtype not in FLOATS:
        raise CheckpointError(f"{path}: {name} is {info.dtype} {list(info.shape)}; expected vectors, [n, width] floats")
    token = path.stem if name == _A1111_KEY else name
    return Embedding(token, file.read(name).float().reshape(-1, info.shape[-1]).clone())


def write_embedding(
    path: str | os.PathLike[str], embedding: Embedding, layout: EmbeddingLayout, *, overwrite: bool = False
) -> Path:
    """Write an embedding, atomically. FileExistsError without `overwrite`."""
    match layout:
        case EmbeddingLayout.A1111:
            name = _A1111_KEY
        case EmbeddingLayout.DIFFUSERS:
            name = embedding.token
        case _:
            assert_never(layout)
    info = TensorInfo(dtype_name(embedding.vectors.dtype), tuple(embedding.vectors.shape))
    write_safetensors(path, {name: info}, lambda _: embedding.vectors, metadata=[("format", "pt")], overwrite=overwrite)
    return Path(path)
