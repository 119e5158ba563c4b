"""What is measured when nobody says what, and what a report holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.gaussian_model import gaussian_bundle
from torch import Tensor

from langevin.errors import DataError, RequestError
from langevin.evaluation.extractors import OpenExtractor
from langevin.evaluation.figures import Figure, Report, plot_report
from langevin.evaluation.run import Metric, Wanted, chosen_metrics, evaluate
from langevin.model.bundle import ModelBundle


@dataclass(frozen=True)
class Pictures:
    pictures: Tensor
    records: list[dict[str, Any]]
    fingerprint: str = "f" * 64


class Means:
    name = "colours"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


COLOURS = OpenExtractor(kind="clip", extractor=Means(), sha256="0" * 64)
CLASSES = OpenExtractor(kind="classifier", extractor=Means(), sha256="1" * 64)


def some(count: int, seed: int = 0, size: int = 8) -> Pictures:
    """Pixels as the exact model of `gaussian_model` makes them."""
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    pictures = (((0.25 * noise).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Pictures(pictures, [{"caption": f"picture {i}", "label": 0} for i in range(count)])


def test_what_can_be_measured_is_chosen(tiny_bundle: ModelBundle) -> None:
    sets = {Metric.FRECHET, Metric.KERNEL, Metric.PRECISION_RECALL, Metric.DENSITY_COVERAGE}

    def choose(subject: Any, extractors: list[OpenExtractor], align: Any = None, data: Any = None) -> set[Metric]:
        return set(chosen_metrics(subject, data or some(4), extractors, Wanted(), align))

    assert choose(gaussian_bundle(), [COLOURS]) == sets
    assert choose(gaussian_bundle(), [COLOURS, CLASSES]) == sets | {Metric.INCEPTION_SCORE}
    assert choose(tiny_bundle, []) == {Metric.RECONSTRUCTION}
    scenes = Pictures(some(4).pictures, [{"caption": "a", "things": []}] * 4)
    assert choose(tiny_bundle, [], lambda *_: [], scenes) == {Metric.RECONSTRUCTION, Metric.ALIGNMENT}
    assert choose(some(4), [CLASSES]) == sets | {Metric.INCEPTION_SCORE}
    with pytest.raises(RequestError, match="nothing can be measured without features: give --features"):
        choose(gaussian_bundle(), [])


def test_an_exact_model_reaches_the_floor_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    data = some(400)
    values = {}
    for name, subject in (("exact", some(200, 5)), ("wrong", some(200, 5))):
        given = subject if name == "exact" else Pictures(subject.pictures // 2 + 80, subject.records)
        report = evaluate(given, data, [COLOURS], Wanted(seed=1), folder=tmp_path)
        values[name] = {f.name: f for f in report.figures}
        assert report.subject["pictures"] == 200 and report.data["pictures"] == 400
        assert all(f.reference == f.generated == 200 for f in report.figures)
    exact, wrong = values["exact"]["frechet distance"], values["wrong"]["frechet distance"]
    assert exact.real == wrong.real and exact.value < 3 * exact.real < wrong.value / 10
    assert values["exact"]["recall"].value > 0.6 and values["wrong"]["precision"].value < 0.1


def test_a_model_is_compared_with_the_records_it_was_told(tmp_path: Path) -> None:
    report = evaluate(
        gaussian_bundle(channels=3), some(40), [COLOURS], Wanted(metrics=frozenset({Metric.KERNEL, Metric.BITS}),
        likelihood_samples=2, likelihood_steps=10), folder=tmp_path / "made",
    )  # fmt: skip
    names = [f.name for f in report.figures]
    assert names == ["kernel distance", "bits/dim (ODE)", "bits/dim (bound)"]
    assert report.figures[0].generated == 20 and report.figures[1].reference == 2
    assert report.subject["generation"]["told"] == "nothing" and report.subject["model"]["name"] == "gaussian"


def test_too_few_pictures_leave_out_what_was_not_asked_for(tmp_path: Path) -> None:
    report = evaluate(some(3), some(12), [COLOURS], Wanted(), folder=tmp_path)
    assert not any(f.name == "frechet distance" for f in report.figures)
    assert "frechet of colours is left out: 3 samples are too few" in report.notices[0]
    with pytest.raises(DataError, match="3 samples are too few"):
        evaluate(some(3), some(12), [COLOURS], Wanted(metrics=frozenset({Metric.FRECHET})), folder=tmp_path)
    with pytest.raises(RequestError, match="samples goes with a model"):
        evaluate(some(3), some(12), [COLOURS], Wanted(samples=3), folder=tmp_path)


def test_bounds_are_named() -> None:
    for name, value in (("likelihood_steps", 1), ("likelihood_samples", 0), ("batch", 0), ("seed", -1)):
        with pytest.raises(RequestError, match=f"{name.replace('_', '-')} {value} is out of range"):
            Wanted(**{name: value})  # type: ignore[arg-type]


def test_a_report_is_plain_json_and_a_chart(tmp_path: Path) -> None:
    figures = (
        Figure(name="psnr", value=float("inf"), better="higher"),
        Figure(name="recall", value=0.5, better="higher", real=0.8, settings={"neighbours": 3}),
    )
    report = Report(subject={}, data={}, figures=figures, notices=(), seconds=1.23)
    report.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["figures"][0]["value"] == "inf" and read["figures"][1]["settings"] == {"neighbours": 3}
    plot_report(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
