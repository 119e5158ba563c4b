"""Whether the text that a picture was made from is found among many, by one CLIP's two towers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError


def ranks(images: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """How many texts are nearer to each picture than its own, int64 [N]: 0 where its own is the nearest.

    images: vectors N D of the image tower. texts: M D, of the text tower; equal texts once. own: int64 [N], each
    picture's text. By cosine similarity (Radford et al. 2021). Raises DataError where the shapes do not fit.
    """
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1] or own.shape != images.shape[:1]:
        raise DataError(
            f"vectors N D and M D and N places are needed, got {tuple(images.shape)}, {tuple(texts.shape)} and "
            f"{tuple(own.shape)}"
        )
    likeness = F.normalize(images.double(), dim=1) @ F.normalize(texts.double(), dim=1).T  # N M
    return (likeness > likeness.gather(1, own[:, None])).sum(1)


def share_found(found: Tensor, first: int = 1) -> float:
    """The share of `ranks` that are among the first ones."""
    return float((found < first).float().mean()) if len(found) else float("nan")


def places_of(wanted: list[str], among: list[str]) -> Tensor:
    """int64 [N]: where each text stands in a list. Raises DataError for one that is not in it."""
    place = {text: i for i, text in enumerate(among)}
    for text in wanted:
        if text not in place:
            raise DataError(f"{text!r} is not among the {len(among)} texts")
    return torch.tensor([place[text] for text in wanted], dtype=torch.int64)
