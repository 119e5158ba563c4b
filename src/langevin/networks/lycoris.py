"""The adapters of the LyCORIS library (Yeh et al. 2023) and DoRA (Liu et al. 2024): other ways than up down to say what
is added to a layer's weight. Like every adapter, each has a shape and a change (`langevin.networks.lora.Adapter`).

Shapes below: out and in are the layer's channels, h w a convolution's kernel, r the rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from langevin.networks.lora import Adapter, scaled

Shape = tuple[int, ...]


class LoconWeights(NamedTuple):
    """A convolution in three parts, 1x1, h x w within the rank, 1x1 (LoCon with a CP decomposition)."""

    down: Tensor
    """[r, in, 1, 1]."""
    mid: Tensor
    """[r, r, h, w]."""
    up: Tensor
    """[out, r, 1, 1]."""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> Shape | None:
        flat = all(t.ndim in (2, 4) and all(n == 1 for n in t.shape[2:]) for t in (self.down, self.up))
        return _tucker_shape(self.mid, self.up.flatten(1).T, self.down.flatten(1)) if flat else None

    def change(self, weight: Tensor) -> Tensor:
        return scaled(self, _tucker(self.mid, self.up.flatten(1).T, self.down.flatten(1)), weight)


class LohaWeights(NamedTuple):
    """The elementwise product of two low-rank matrices (Hyeon-Woo et al. 2022, FedPara), rank r each, so r^2 together:
    (w1_a w1_b) * (w2_a w2_b). With t1 and t2 each factor is a Tucker product instead."""

    w1_a: Tensor
    """[out, r], with t1 [r, out]."""
    w1_b: Tensor
    """[r, in h w], with t1 [r, in]."""
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None
    """[r, r, h, w], of both factors or of none."""
    t2: Tensor | None
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.w1_b)

    @property
    def shape(self) -> Shape | None:
        first, second = (_product_shape(*factor) for factor in self._factors())
        return first if first == second else None

    def change(self, weight: Tensor) -> Tensor:
        first, second = (_product(*factor) for factor in self._factors())
        return scaled(self, first * second, weight)

    def _factors(self) -> tuple[tuple[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]:
        return (self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2)


class LokrWeights(NamedTuple):
    """The Kronecker product of two matrices, each whole or low-rank: out = out1 out2, in = in1 in2."""

    w1: Tensor | None
    """[out1, in1]; None: w1_a [out1, r] w1_b [r, in1]."""
    w1_a: Tensor | None
    w1_b: Tensor | None
    w2: Tensor | None
    """[out2, in2] or [out2, in2, h, w]; None: w2_a [out2, r] w2_b [r, in2 h w], with t2 [r, r, h, w] their Tucker
    product, where w2_a is [r, out2] and w2_b [r, in2]."""
    w2_a: Tensor | None
    w2_b: Tensor | None
    t2: Tensor | None
    alpha: float

    @property
    def rank(self) -> int | None:
        """None where both matrices are whole: alpha means nothing then."""
        factor = self.w1_b if self.w1_b is not None else self.w2_b
        return None if factor is None else len(factor)

    @property
    def shape(self) -> Shape | None:
        first = tuple(self.w1.shape) if self.w1 is not None else _product_shape(*self._first(), None)
        second = tuple(self.w2.shape) if self.w2 is not None else _product_shape(*self._second())
        if first is None or second is None or len(first) != 2 or len(second) < 2:
            return None
        return (first[0] * second[0], first[1] * second[1], *second[2:])

    def change(self, weight: Tensor) -> Tensor:
        first = self.w1.float() if self.w1 is not None else _product(*self._first(), None)
        second = self.w2.float() if self.w2 is not None else _product(*self._second())
        return scaled(self, torch.einsum("ij,kl...->ikjl...", first, second), weight)

    def _first(self) -> tuple[Tensor, Tensor]:
        assert self.w1_a is not None and self.w1_b is not None
        return self.w1_a, self.w1_b

    def _second(self) -> tuple[Tensor, Tensor, Tensor | None]:
        assert self.w2_a is not None and self.w2_b is not None
        return self.w2_a, self.w2_b, self.t2


class Difference(NamedTuple):
    """The change itself, of a weight or of a bias."""

    value: Tensor

    @property
    def rank(self) -> None:
        return None

    @property
    def alpha(self) -> float:
        return 1.0

    @property
    def shape(self) -> Shape:
        return tuple(self.value.shape)

    def change(self, weight: Tensor) -> Tensor:
        return scaled(self, self.value.float(), weight)


class DoraWeights(NamedTuple):
    """Weight-decomposed adaptation: the adapted weight gives the directions, `magnitude` the lengths,

        W' = m (W + change) / |W + change|,

    where | | is taken of what belongs to each output channel (axis 0) or each input channel (axis 1)."""

    adapter: Adapter
    magnitude: Tensor
    """[out] for axis 0, [in] for axis 1."""
    axis: int

    @property
    def rank(self) -> int | None:
        return self.adapter.rank

    @property
    def alpha(self) -> float:
        return self.adapter.alpha

    @property
    def shape(self) -> Shape | None:
        return self.adapter.shape

    def change(self, weight: Tensor) -> Tensor:
        """At other strengths than 1 it is the whole change, W' - W, that is multiplied, so that 0 gives W."""
        moved = weight.float() + self.adapter.change(weight)
        other = [i for i in range(weight.ndim) if i != self.axis]
        length = torch.linalg.vector_norm(moved, dim=other, keepdim=True) + torch.finfo(torch.float32).eps
        return moved * (self.magnitude.float().to(length.device).reshape(length.shape) / length) - weight.float()


def _product(a: Tensor, b: Tensor, t: Tensor | None) -> Tensor:
    return a.float() @ b.float() if t is None else _tucker(t, a, b)


def _product_shape(a: Tensor, b: Tensor, t: Tensor | None) -> Shape | None:
    if t is not None:
        return _tucker_shape(t, a, b)
    return (len(a), b.shape[1]) if a.ndim == b.ndim == 2 and a.shape[1] == len(b) else None


def _tucker(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """t [i, j, h, w], a [i, out], b [j, in] -> [out, in, h, w]."""
    return torch.einsum("ijhw,io,jn->onhw", t.float(), a.float(), b.float())


def _tucker_shape(t: Tensor, a: Tensor, b: Tensor) -> Shape | None:
    fitting = t.ndim == 4 and a.ndim == b.ndim == 2 and t.shape[:2] == (len(a), len(b))
    return (a.shape[1], b.shape[1], *t.shape[2:]) if fitting else None
