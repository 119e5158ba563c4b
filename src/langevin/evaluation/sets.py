"""The figures of one set of pictures against another, each with its floor."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from langevin.errors import RequestError
from langevin.evaluation.distances import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from langevin.evaluation.extractors import OpenExtractor
from langevin.evaluation.features import Views, clip_score, embed_texts
from langevin.evaluation.figures import Figure

SUBSETS = 100
LARGEST_SUBSET = 1000
"""Of the kernel distance; half of the smaller set where that is less, so that the subsets differ."""
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
LARGEST_SPLITS = 10
"""Of the Inception score; fewer where a part would have less than twice as many pictures as there are classes."""


class SetMetric(StrEnum):
    """What is measured between two sets of features."""

    FRECHET = "frechet"
    KERNEL = "kernel"
    PRECISION_RECALL = "precision-recall"
    DENSITY_COVERAGE = "density-coverage"
    INCEPTION_SCORE = "inception-score"


class _Value(NamedTuple):
    name: str
    better: str
    value: float
    deviation: float | None = None
    settings: dict[str, int] | None = None


def set_figures(
    fake: Views,
    real: Views,
    spare: Views | None,
    *,
    metrics: Collection[SetMetric],
    extractor: OpenExtractor,
    seed: int,
) -> list[Figure]:
    """The figures of `fake` against `real`; their floors are those of `spare`, further real pictures, against `real`.

    Give as many spare pictures as fake ones: most floors depend on the number. Raises DataError where a set is too
    small for a metric, RequestError for an Inception score of an extractor without classes.
    """
    figures = []
    for metric in SetMetric:
        if metric not in metrics:
            continue
        at_best = [] if spare is None else _measured(metric, spare, real, extractor, seed)
        floors = {v.name: v.value for v in at_best}
        figures += [
            Figure(
                name=v.name,
                value=v.value,
                better="lower" if v.better == "lower" else "higher",
                deviation=v.deviation,
                real=floors.get(v.name),
                extractor=extractor.name,
                weights_sha256=extractor.sha256,
                generated=len(fake.features),
                reference=0 if metric is SetMetric.INCEPTION_SCORE else len(real.features),
                seed=seed,
                settings=v.settings or {},
            )
            for v in _measured(metric, fake, real, extractor, seed)
        ]
    return figures


def _measured(metric: SetMetric, fake: Views, real: Views, extractor: OpenExtractor, seed: int) -> list[_Value]:
    a, b = real.features, fake.features
    match metric:
        case SetMetric.FRECHET:
            return [_Value("frechet distance", "lower", frechet_distance(a, b))]
        case SetMetric.KERNEL:
            size = min(LARGEST_SUBSET, max(2, min(len(a), len(b)) // 2))
            found = kernel_distance(a, b, subsets=SUBSETS, subset_size=size, seed=seed)
            settings = {"subsets": SUBSETS, "subset_size": size}
            return [_Value("kernel distance", "lower", found.mean, found.deviation, settings)]
        case SetMetric.PRECISION_RECALL:
            shares = precision_recall(a, b, neighbours=PRECISION_NEIGHBOURS)
            settings = {"neighbours": PRECISION_NEIGHBOURS}
            return [
                _Value("precision", "higher", shares.precision, settings=settings),
                _Value("recall", "higher", shares.recall, settings=settings),
            ]
        case SetMetric.DENSITY_COVERAGE:
            balls = density_coverage(a, b, neighbours=DENSITY_NEIGHBOURS)
            settings = {"neighbours": DENSITY_NEIGHBOURS}
            return [
                _Value("density", "higher", balls.density, settings=settings),
                _Value("coverage", "higher", balls.coverage, settings=settings),
            ]
        case SetMetric.INCEPTION_SCORE:
            if fake.probabilities is None:
                raise RequestError(
                    f"inception-score: {extractor.name} knows no classes: give inception= or classifier="
                )
            count, classes = fake.probabilities.shape
            splits = max(1, min(LARGEST_SPLITS, count // (2 * classes)))
            score = inception_score(fake.probabilities, splits=splits)
            name = "inception score" if extractor.kind == "inception" else "class score"
            return [_Value(name, "higher", score.mean, score.deviation, {"splits": splits, "classes": classes})]
        case _:
            assert_never(metric)


def clip_figure(
    fake: Tensor, captions: list[str], real: Tensor, real_captions: list[str], *, extractor: OpenExtractor, seed: int
) -> Figure:
    """The mean CLIP score of pictures with the texts that they were made for.

    fake, real: features N D of the extractor's image tower, each with its caption. The floor column is the score of
    the real pairs; chance that of the real pictures with the captions moved on by one place in a random order.
    """
    clip = extractor.clip
    if clip is None:
        raise RequestError(f"clip-score: {extractor.name} has no text tower: give clip=FILE-OR-FOLDER")
    texts = embed_texts(clip, real_captions)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    scores = clip_score(fake, embed_texts(clip, captions))
    return Figure(
        name="clip score",
        value=float(scores.mean()),
        better="higher",
        deviation=float(scores.std(correction=0)),
        real=float(clip_score(real, texts).mean()),
        chance=float(clip_score(real[order], texts[order.roll(1)]).mean()),
        extractor=extractor.name,
        weights_sha256=extractor.sha256,
        generated=len(fake),
        reference=len(real),
        seed=seed,
    )


class Halves(NamedTuple):
    """Places of real pictures in their data set."""

    reference: list[int]
    """What the generated pictures are compared with."""
    spare: list[int]
    """As many others, for the floor; none where there is to be none."""


def split_real(count: int, samples: int, seed: int, *, floor: bool = True) -> Halves:
    """Two disjoint random halves of `samples` pictures each; without a floor, all pictures are the reference.

    Raises RequestError where the data has not twice as many pictures.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if not floor:
        return Halves(order, [])
    if 2 * samples > count:
        raise RequestError(
            f"samples {samples}: the figures and their floor need twice as many real pictures, the data has {count}; "
            f"measure {count // 2} or fewer, or give --no-floor"
        )
    return Halves(order[:samples], order[samples : 2 * samples])
