"""Prompts to the states that a diffusion network attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from langevin.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from langevin.networks.clip import ClipText


class TextEncoder:
    """A CLIP text tower with its tokenizer."""

    def __init__(self, network: ClipText, tokenizer: Tokenizer, layer: int = -1) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.layer = layer

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """int64 [B, 77]: each caption taken literally, cut to 75 tokens, between start and end token, padded."""
        lines = [self.tokenizer.padded(self.tokenizer.encode(caption)) for caption in captions]
        return torch.tensor(lines, dtype=torch.int64).view(len(lines), self.tokenizer.max_length)
