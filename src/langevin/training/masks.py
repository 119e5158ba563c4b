"""Random masks to train inpainting with: boxes, strokes, the whole picture."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import torch
from torch import Tensor


class Mask(StrEnum):
    """What is hidden."""

    BOXES = "boxes"
    """One to three rectangles, each side between an eighth and the half of the picture's."""
    STROKES = "strokes"
    """One to three strokes of a round brush, each a line through two to six points."""
    WHOLE = "whole"
    """Everything: what is left is the text."""


def random_mask(height: int, width: int, generator: torch.Generator, whole_share: float) -> Tensor:
    """float32 1 H W, 1 where the picture is hidden: whole with that share, else boxes or strokes alike."""
    chance = float(torch.rand((), generator=generator))
    kind = Mask.WHOLE if chance < whole_share else Mask.BOXES if chance < (1 + whole_share) / 2 else Mask.STROKES
    return draw_mask(kind, height, width, generator)


def draw_mask(kind: Mask, height: int, width: int, generator: torch.Generator) -> Tensor:
    """float32 1 H W of zeros and ones; at least one pixel is hidden."""
    match kind:
        case Mask.BOXES:
            return _boxes(height, width, generator)
        case Mask.STROKES:
            return _strokes(height, width, generator)
        case Mask.WHOLE:
            return torch.ones(1, height, width)
        case _:
            assert_never(kind)


def _boxes(height: int, width: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(1, height, width)
    for _ in range(_between(1, 3, generator)):
        h, w = (_between(max(1, side // 8), max(1, side // 2), generator) for side in (height, width))
        top, left = _between(0, height - h, generator), _between(0, width - w, generator)
        mask[:, top : top + h, left : left + w] = 1
    return mask


def _strokes(height: int, width: int, generator: torch.Generator) -> Tensor:
    side = min(height, width)
    y = torch.arange(height).view(-1, 1) + 0.5
    x = torch.arange(width).view(1, -1) + 0.5
    mask = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(_between(1, 3, generator)):
        radius = max(1.0, side * (0.03 + 0.09 * float(torch.rand((), generator=generator))))
        points = torch.rand(_between(2, 6, generator), 2, generator=generator) * torch.tensor([width, height])
        for (ax, ay), (bx, by) in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
            # The distance of every pixel's centre to the segment from a to b.
            dx, dy = bx - ax, by - ay
            along = (((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-12)).clamp(0, 1)
            mask |= (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 <= radius**2
    return mask[None].float()


def _between(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
