"""How far one picture is from another, pixel by pixel: for reconstructions, where each output has its original."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.errors import DataError

_RANGE = 2.0
"""Distance of the darkest from the lightest pixel: -1 to 1."""
_WINDOW = 11
_DEVIATION = 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels of each pair: `10 log10(range^2 / mean squared error)`.

    a, b: B C H W in [-1, 1]. Returns float64 [B], infinity for equal pictures. Average the decibels, as the field does,
    and say so: the mean of the errors would give a lower figure.
    """
    x, y = _pair(a, b)
    return 10 * torch.log10(_RANGE**2 / (x - y).square().mean((1, 2, 3)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair, from -1 to 1 (Wang et al. 2004, equations 13 to 17).

    11 x 11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03, weighted moments, and only windows that lie wholly
    inside the picture, as in the authors' program. That one takes the luminance; here each channel is
    measured and the mean taken, so give one channel where a published figure is to be met.

    a, b: B C H W in [-1, 1], H and W at least 11. Returns float64 [B].
    """
    x, y = _pair(a, b)
    if min(x.shape[2:]) < _WINDOW:
        raise DataError(f"pictures of {x.shape[3]}x{x.shape[2]} are too small for SSIM; its window is 11x11")
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    mx, my = _blurred(x), _blurred(y)
    vx, vy = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my
    vxy = _blurred(x * y) - mx * my
    # The formula's luminance term is for intensities from 0 on, not for [-1, 1].
    mx, my = mx + _RANGE / 2, my + _RANGE / 2
    similarity = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean((1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """Weighted means over each window: B C H W -> B C H-10 W-10."""
    offset = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * _DEVIATION**2))
    weight = (weight / weight.sum()).view(1, 1, -1, 1)
    flat = x.flatten(0, 1)[:, None]  # BC 1 H W
    return F.conv2d(F.conv2d(flat, weight), weight.mT).unflatten(0, x.shape[:2])[:, :, 0]


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 4 or a.numel() == 0:
        raise DataError(f"two batches of equal shape B C H W are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    for x in (a, b):
        low, high = float(x.min()), float(x.max())
        if not -1 <= low <= high <= 1:
            raise DataError(f"pixels run from {low:g} to {high:g}; they must be from -1 to 1, so clamp or scale them")
    return a.to(torch.float64), b.to(torch.float64)
