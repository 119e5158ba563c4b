"""A LoRA out of two models: the best low-rank form of what one learned beyond the other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from langevin.checkpoints.lora import LoraLayout, layer_names, write_lora
from langevin.checkpoints.merging import check_alike, check_target, files_in_words, on_meta, open_model
from langevin.checkpoints.tensorfile import torch_dtype
from langevin.errors import CheckpointError, RequestError
from langevin.networks.lora import LoraWeights

EXTRACT_KEY = "langevin.extract"
"""Metadata: what it was taken from, as JSON."""

PARTS = ("unet", "text")


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """How much of a part's difference the adapters hold."""

    layers: int
    """With an adapter."""
    unchanged: int
    """Layers that are equal in both models and have none."""
    error: float
    """Length of what is missing over the length of the difference of the layers' weights (Frobenius norm): 0 is all
    there."""
    elsewhere: tuple[str, ...]
    """Tensors that differ too and have no place in a LoRA: biases, normalisations, embeddings."""


class Extracted(NamedTuple):
    target: Path
    parts: Mapping[str, PartReport]


def extract_lora(
    tuned: str | Path,
    base: str | Path,
    target: Path,
    *,
    rank: int = 16,
    parts: Iterable[str] = PARTS,
    dtype: Literal["F32", "F16", "BF16"] = "F16",
    ema: bool | Literal["auto"] = "auto",
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Extracted:
    """Write W_tuned - W_base of each linear layer and convolution as a LoRA of a rank, in kohya's layout, alpha = rank.

    The adapter is the difference's truncated singular value decomposition, the nearest matrix of that rank (Eckart and
    Young 1936), each singular value shared equally by both factors. tuned, base: as `load_bundle` takes them. dtype: of
    the file. Raises CheckpointError where the architectures differ or no layer does, RequestError for a rank below 1
    and for a target that is there already without `overwrite`.
    """
    if rank < 1:
        raise RequestError(f"rank {rank} is out of bounds: give 1 or more")
    check_target(target, overwrite)
    after, before = (open_model(source, ema=ema, allow_pickle=allow_pickle) for source in (tuned, base))
    chosen = [part for part in PARTS if part in after.parts and part in set(parts)]
    check_alike(before, after, chosen, further_channels=False)
    bundle = on_meta(after, Path(after.label).stem)
    names = layer_names(bundle)
    found: dict[str, dict[str, LoraWeights]] = {}
    reports: dict[str, PartReport] = {}
    for part in chosen:
        layers: dict[str, LoraWeights] = {}
        missing = whole = 0.0
        elsewhere = []
        for name in after.parts[part].places:
            difference = after.parts[part].read(name).double() - before.parts[part].read(name).double()
            layer = name.removesuffix(".weight")
            if not difference.any():
                continue
            if layer not in names[part]:
                elsewhere.append(name)
                continue
            made = _nearest(difference, rank, torch_dtype(dtype))
            layers[layer] = made
            missing += float((difference - made.change(difference)).square().sum())
            whole += float(difference.square().sum())
        reports[part] = PartReport(
            layers=len(layers),
            unchanged=len(names[part]) - len(layers),
            error=math.sqrt(missing / whole) if whole else 0.0,
            elsewhere=tuple(elsewhere),
        )
        if layers:
            found[part] = layers
    if not found:
        raise CheckpointError(f"{after.label} and {before.label}: no layer of {' or '.join(chosen)} differs")
    facts = {"rank": rank, "tuned": files_in_words(after.files), "base": files_in_words(before.files)}
    metadata = {EXTRACT_KEY: json.dumps(facts, ensure_ascii=False)}
    write_lora(target, found, bundle, LoraLayout.KOHYA, metadata=metadata, overwrite=overwrite)
    return Extracted(target, reports)


def _nearest(difference: Tensor, rank: int, dtype: torch.dtype) -> LoraWeights:
    """By the eigenvectors of the smaller of D D^T and D^T D, which takes a tenth of the time of a whole decomposition;
    in float64, where squaring the singular values loses nothing that the file could hold."""
    matrix = difference.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    flat = matrix.T if tall else matrix
    rank = min(rank, len(flat))
    squares, vectors = torch.linalg.eigh(flat @ flat.T)
    left = vectors[:, -rank:].flip(1)
    right = left.T @ flat  # singular values times right vectors
    scale = squares[-rank:].flip(0).clamp(min=0).sqrt().sqrt()
    left, right = left * scale, right / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    up, down = (right.T, left.T) if tall else (left, right)
    return LoraWeights(
        down.unflatten(1, difference.shape[1:]).to(dtype).contiguous(),
        up.reshape(*up.shape, *[1] * (difference.ndim - 2)).to(dtype).contiguous(),
        float(rank),
    )
