"""Against the formulae written out anew: in numpy on pixels from 0 to 255, with scipy's filter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from langevin.errors import DataError
from langevin.evaluation.pictures import psnr, ssim


def picture(seed: int, *shape: int) -> Tensor:
    """Smooth structure and some noise, B C H W in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], 4, 4, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic")
    return (2 * smooth - 1 + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)


def ssim_of_bytes(a: np.ndarray, b: np.ndarray) -> float:
    """One channel, H W, 0 ... 255."""

    def blurred(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = blurred(a), blurred(b)
    va, vb, vab = blurred(a * a) - ma * ma, blurred(b * b) - mb * mb, blurred(a * b) - ma * mb
    return float(np.mean((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))


def as_bytes(x: Tensor) -> np.ndarray:
    return ((x + 1) * 127.5).numpy()


def test_psnr_is_that_of_bytes() -> None:
    a, b = picture(0, 3, 3, 9, 14), picture(1, 3, 3, 9, 14)
    expected = [10 * math.log10(255**2 / np.mean((x - y) ** 2)) for x, y in zip(as_bytes(a), as_bytes(b), strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-12)
    assert psnr(torch.full((1, 1, 2, 2), 0.8), torch.full((1, 1, 2, 2), 1.0)).item() == pytest.approx(20, rel=1e-6)
    assert psnr(a, a).tolist() == [math.inf] * 3


@pytest.mark.parametrize("size", [(11, 11), (24, 17)])
def test_ssim_is_that_of_bytes(size: tuple[int, int]) -> None:
    a = picture(2, 2, 3, *size)
    b = (0.7 * a + 0.3 * picture(3, 2, 3, *size) + 0.05).clamp(-1, 1)
    pairs = zip(as_bytes(a), as_bytes(b), strict=True)
    expected = [np.mean([ssim_of_bytes(c, d) for c, d in zip(x, y, strict=True)]) for x, y in pairs]
    assert ssim(a, b).tolist() == pytest.approx(expected, rel=1e-9)
    assert ssim(b, a).tolist() == pytest.approx(expected, rel=1e-9)
    assert 0.1 < min(expected) < max(expected) < 0.99


def test_ssim_of_equal_and_of_turned_structure() -> None:
    a = 0.9 * picture(4, 2, 1, 20, 20)
    assert ssim(a, a).tolist() == pytest.approx([1, 1], rel=1e-12)
    assert (ssim(a, -a) < 0).all()


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"equal shape B C H W are needed, got \(1, 1, 9, 9\) and \(1, 1, 9, 8\)"):
        psnr(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 8))
    with pytest.raises(DataError, match="pictures of 12x10 are too small"):
        ssim(torch.zeros(1, 1, 10, 12), torch.zeros(1, 1, 10, 12))
    with pytest.raises(DataError, match="pixels run from 0 to 255"):
        psnr(torch.tensor([[[[0.0, 255.0]]]]), torch.zeros(1, 1, 1, 2))
    with pytest.raises(DataError, match="nan"):
        psnr(torch.full((1, 1, 2, 2), math.nan), torch.zeros(1, 1, 2, 2))
