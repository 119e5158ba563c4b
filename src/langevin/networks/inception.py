"""The Inception network of the Frechet distance: Inception-v3 as it was trained in TensorFlow in 2015.

The architecture is that of Szegedy et al. 2015, "Rethinking the Inception Architecture", with the names of the
published PyTorch port of those weights (the `pt_inception-2015-12-05` file). The weights were trained with details in
which other Inception-v3 networks differ: averages over a window leave out what lies beyond the edge, the pooling of
the last block takes the largest value, and there are 1008 logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 299
"""Height and width of the pictures."""
FEATURES = 2048
LOGITS = 1008

Kernel = int | tuple[int, int]


class Seen(NamedTuple):
    """What the network says of a batch of pictures."""

    features: Tensor
    """B 2048: the mean over the places of the last block."""
    logits: Tensor
    """B 1008, without the bias: the Inception score's own program leaves it out (Salimans et al. 2016)."""


class Norm(nn.Module):
    """Batch normalisation by stored moments alone: this network is never trained here."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W, returns the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class Conv(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = Norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """x: B C H W. Returns B out h w."""
        return F.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    """3x3 means over what lies inside the picture."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Block35(nn.Module):
    """Figure 5 of the paper, at 35 x 35: 1x1, 5x5, twice 3x3, and pooling."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1 = Conv(channels, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W to B 224+pooled H W."""
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(_mean_pool(x)),
            ],
            1,
        )


class Shrink35(nn.Module):
    """From 35 x 35 to 17 x 17: a convolution of stride 2, another after two, and pooling (figure 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W to B C+480 h w."""
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, 2)], 1)


class Block17(nn.Module):
    """Figure 6, at 17 x 17: 7x7 convolutions as a row and a column."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Conv(channels, 192, 1)
        self.branch7x7_1 = Conv(channels, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, **row)  # type: ignore[arg-type]
        self.branch7x7_3 = Conv(inner, 192, **column)  # type: ignore[arg-type]
        self.branch7x7dbl_1 = Conv(channels, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, **column)  # type: ignore[arg-type]
        self.branch7x7dbl_3 = Conv(inner, inner, **row)  # type: ignore[arg-type]
        self.branch7x7dbl_4 = Conv(inner, inner, **column)  # type: ignore[arg-type]
        self.branch7x7dbl_5 = Conv(inner, 192, **row)  # type: ignore[arg-type]
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W to B 768 H W."""
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                self.branch7x7dbl_5(self.branch7x7dbl_4(twice)),
                self.branch_pool(_mean_pool(x)),
            ],
            1,
        )


class Shrink17(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(channels, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(channels, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W to B C+512 h w."""
        wide = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(wide), F.max_pool2d(x, 3, 2)], 1)


class Block8(nn.Module):
    """Figure 7, at 8 x 8: 3x3 convolutions as a row beside a column."""

    def __init__(self, channels: int, *, largest: bool) -> None:
        """largest: pool by the largest value of a window instead of the mean."""
        super().__init__()
        self.largest = largest
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(channels, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W to B 2048 H W."""
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.largest else _mean_pool(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(once),
                self.branch3x3_2b(once),
                self.branch3x3dbl_3a(twice),
                self.branch3x3dbl_3b(twice),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """The whole network."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = Block35(192, 32)
        self.Mixed_5c = Block35(256, 64)
        self.Mixed_5d = Block35(288, 64)
        self.Mixed_6a = Shrink35(288)
        self.Mixed_6b = Block17(768, 128)
        self.Mixed_6c = Block17(768, 160)
        self.Mixed_6d = Block17(768, 160)
        self.Mixed_6e = Block17(768, 192)
        self.Mixed_7a = Shrink17(768)
        self.Mixed_7b = Block8(1280, largest=False)
        self.Mixed_7c = Block8(2048, largest=True)
        self.fc = nn.Linear(FEATURES, LOGITS)

    def forward(self, images: Tensor) -> Seen:
        """images: B 3 H W in [-1, 1], brought to 299 x 299 by bilinear interpolation without antialiasing, as the
        port does; the distance depends on it (Parmar et al. 2022)."""
        x = images
        if tuple(x.shape[-2:]) != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))  # B 2048
        return Seen(features, F.linear(features, self.fc.weight))
