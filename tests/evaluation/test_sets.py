"""Sets of features with their floors, and which real pictures are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from langevin.errors import DataError, RequestError
from langevin.evaluation.distances import frechet_distance, kernel_distance, precision_recall
from langevin.evaluation.extractors import OpenExtractor, open_extractor
from langevin.evaluation.features import Views
from langevin.evaluation.sets import SetMetric, clip_figure, set_figures, split_real


class Named:
    name = "a network"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


OPEN = OpenExtractor(kind="classifier", extractor=Named(), sha256="ab" * 32)


def normal(seed: int, count: int = 120, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_each_figure_carries_its_floor_and_what_it_was_made_with() -> None:
    real, spare, fake = normal(0), normal(1), 2 * normal(2)
    views = [Views(x, x.softmax(1)) for x in (fake, real, spare)]
    figures = {f.name: f for f in set_figures(*views, metrics=set(SetMetric), extractor=OPEN, seed=4)}
    assert set(figures) == {
        "frechet distance", "kernel distance", "precision", "recall", "density", "coverage", "class score",
    }  # fmt: skip
    frechet = figures["frechet distance"]
    assert frechet.value == frechet_distance(real, fake) and frechet.real == frechet_distance(real, spare)
    assert frechet.value > 3 * frechet.real and frechet.better == "lower"
    kernel = figures["kernel distance"]
    assert kernel.value == kernel_distance(real, fake, subsets=100, subset_size=60, seed=4).mean
    assert kernel.settings == {"subsets": 100, "subset_size": 60}
    assert figures["recall"].value == precision_recall(real, fake).recall
    assert figures["precision"].real == precision_recall(real, spare).precision
    assert all(f.generated == 120 and f.seed == 4 and f.weights_sha256 == "ab" * 32 for f in figures.values())
    assert frechet.reference == 120 and figures["class score"].reference == 0
    assert figures["class score"].settings["splits"] == 10
    few = set_figures(
        Views(fake, fake[:, :5].softmax(1)), views[1], None, metrics={SetMetric.INCEPTION_SCORE}, extractor=OPEN, seed=0
    )
    assert few[0].real is None


def test_an_extractor_without_classes_has_no_inception_score() -> None:
    views = Views(normal(0), None)
    with pytest.raises(RequestError, match="inception-score: a network knows no classes"):
        set_figures(views, views, None, metrics={SetMetric.INCEPTION_SCORE}, extractor=OPEN, seed=0)
    with pytest.raises(RequestError, match="clip-score: a network has no text tower"):
        clip_figure(normal(0), [], normal(0), [], extractor=OPEN, seed=0)


def test_too_few_pictures_are_refused_by_the_distances() -> None:
    views = Views(normal(0, 6), None)
    with pytest.raises(DataError, match="6 samples are too few for features of width 6"):
        set_figures(views, views, None, metrics={SetMetric.FRECHET}, extractor=OPEN, seed=0)


def test_the_halves_are_disjoint_and_a_function_of_the_seed() -> None:
    halves = split_real(50, 20, seed=3)
    assert len(set(halves.reference) | set(halves.spare)) == 40 and halves == split_real(50, 20, seed=3)
    assert halves != split_real(50, 20, seed=4)
    assert sorted(split_real(50, 20, seed=3, floor=False).reference) == list(range(50))
    with pytest.raises(
        RequestError, match=r"samples 26: .*twice as many real pictures, the data has 50; measure 25 or fewer"
    ):
        split_real(50, 26, seed=0)


def test_extractors_are_named_one_way(tmp_path: Path) -> None:
    for spec in ("vgg=file", "inception", "clip=", "classifier=", "=x", "clip:x"):
        with pytest.raises(RequestError, match="is unknown: write inception=FILE"):
            open_extractor(spec)
    with pytest.raises(RequestError, match=r"there is no clip\.safetensors beside the model"):
        open_extractor("clip", model=tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=r"there is no clip\.safetensors beside the model"):
        open_extractor("clip")
