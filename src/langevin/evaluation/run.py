"""One evaluation from end to end: which real pictures, which generated ones, which figures, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from langevin.errors import DataError, RequestError
from langevin.evaluation.extractors import OpenExtractor
from langevin.evaluation.figures import Figure, Report
from langevin.evaluation.generation import generate_pictures, told
from langevin.evaluation.pairs import likelihood_figures, reconstruction_figures
from langevin.evaluation.sets import Halves, SetMetric, clip_figure, set_figures, split_real
from langevin.model.bundle import ModelBundle
from langevin.tasks.manifest import describe
from langevin.tasks.request import GenerateRequest

DEFAULT_SAMPLES = 1000
DEFAULT_BATCH = 16

Record = Mapping[str, Any]
Align = Callable[[Tensor, Sequence[Record], Tensor, Sequence[Record]], list[Figure]]
"""Figures of pictures against the scenes that their records tell of; then real pictures with their records."""
Progress = Callable[[str, int, int], object]
"""What is being done, how much of it is done, how much there is."""


class Metric(StrEnum):
    """Whatever can be asked for."""

    FRECHET = "frechet"
    KERNEL = "kernel"
    PRECISION_RECALL = "precision-recall"
    DENSITY_COVERAGE = "density-coverage"
    INCEPTION_SCORE = "inception-score"
    CLIP_SCORE = "clip-score"
    RECONSTRUCTION = "reconstruction"
    BITS = "bits"
    ALIGNMENT = "alignment"


SET_METRICS = frozenset(Metric(m.value) for m in SetMetric)
OF_GENERATED = SET_METRICS | {Metric.CLIP_SCORE, Metric.ALIGNMENT}
OF_MODELS = frozenset({Metric.RECONSTRUCTION, Metric.BITS})


class Pictures(Protocol):
    """Captioned pictures in memory, as `langevin.training.data.read_data` gives them."""

    @property
    def pictures(self) -> Tensor:
        """uint8 N 3 H W."""

    @property
    def records(self) -> Sequence[Record]:
        """Of each at least `caption`, where captions are needed."""

    @property
    def fingerprint(self) -> str:
        """Of keys and pixels."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be measured, and how."""

    metrics: frozenset[Metric] | None = None
    """None: whatever the extractors, the model and the data allow, but for `bits`, which takes long."""
    samples: int | None = None
    """Pictures to generate; None: 1000, or as many as the data allows for a floor."""
    seed: int = 0
    floor: bool = True
    """Measure the floor too, on as many further real pictures; else the reference is all of the data."""
    likelihood_samples: int = 32
    """Real pictures whose bits per dimension are taken."""
    likelihood_steps: int = 100
    batch: int = DEFAULT_BATCH
    """Pictures that go through the model's networks together. The figures depend on it by rounding alone."""

    def __post_init__(self) -> None:
        for name, low in (
            ("samples", 2),
            ("likelihood_samples", 1),
            ("likelihood_steps", 2),
            ("batch", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise RequestError(f"{name.replace('_', '-')} {value} is out of range; it must be at least {low}")


def evaluate(
    subject: ModelBundle | Pictures,
    data: Pictures,
    extractors: Sequence[OpenExtractor],
    wanted: Wanted,
    *,
    folder: Path,
    request: GenerateRequest | None = None,
    align: Align | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Measure a model, or pictures that are there already, against real ones.

    A model makes one picture for each of the reference pictures' records, in `folder`; a run that was stopped goes on
    there. request: steps, sampler, guidance. align: measures alignment, where the data allows it. about: what the
    report is to say of the data.

    What cannot go together is refused before anything is computed: RequestError, one line. Raises DataError where
    pictures are too few for a metric that was asked for; one that was not is left out, with a notice.
    """
    began = time.perf_counter()
    model = subject if isinstance(subject, ModelBundle) else None
    metrics = chosen_metrics(subject, data, extractors, wanted, align)
    count = len(data.records)
    generated = metrics & OF_GENERATED
    given = None if isinstance(subject, ModelBundle) else subject
    if given is not None and wanted.samples is not None:
        raise RequestError("samples goes with a model: all pictures of the folder are measured")
    samples = len(given.records) if given is not None else wanted.samples or min(DEFAULT_SAMPLES, max(2, count // 2))
    against_real = bool(generated & SET_METRICS)
    halves = _halves(count, samples, wanted, against_real)
    figures: list[Figure] = []
    notices: list[str] = []
    papers: dict[str, Any] = {}
    if generated:
        if model is not None:
            records = [data.records[halves.reference[i % len(halves.reference)]] for i in range(samples)]
            size = data.pictures.shape[-1]
            asked = (request or GenerateRequest(prompt="")).changed(width=size, height=size)
            fake, papers = generate_pictures(
                model, records, folder, asked, seed=wanted.seed, batch=wanted.batch,
                finished=lambda done: progress("pictures", done, samples),
            )  # fmt: skip
        else:
            assert given is not None
            fake, records = given.pictures, list(given.records)
        real, real_records = data.pictures[halves.reference], [data.records[i] for i in halves.reference]
        spare = data.pictures[halves.spare] if halves.spare else None
        for number, extractor in enumerate(extractors):
            progress("features", number, len(extractors))
            found, said = _with_extractor(extractor, fake, records, real, real_records, spare, metrics, wanted)
            figures += found
            notices += said
        if Metric.ALIGNMENT in metrics:
            assert align is not None
            progress("alignment", 0, 1)
            figures += align(fake, records, real, real_records)
    if model is not None and Metric.RECONSTRUCTION in metrics:
        progress("reconstruction", 0, 1)
        some = halves.reference[:samples]
        figures += reconstruction_figures(model, data.pictures[some], seed=wanted.seed, batch=wanted.batch)
    if model is not None and Metric.BITS in metrics:
        some = halves.reference[: wanted.likelihood_samples]
        figures += likelihood_figures(
            model, data.pictures[some], [data.records[i] for i in some], seed=wanted.seed,
            steps=wanted.likelihood_steps, batch=wanted.batch,
            finished=lambda done: progress("likelihood", done, len(some)),
        )  # fmt: skip
    if not figures:
        raise DataError("; ".join(notices) or "nothing was measured")
    if model is not None:
        papers = {"model": describe(model), "generation": {k: v for k, v in papers.items() if k != "model"}}
    elif given is not None:
        papers = {"pictures": samples, "fingerprint": given.fingerprint}
    return Report(
        subject=papers,
        data={**(about or {}), "fingerprint": data.fingerprint, "pictures": count, "floor": wanted.floor},
        figures=tuple(figures),
        notices=tuple(dict.fromkeys(notices)),
        seconds=time.perf_counter() - began,
    )


def chosen_metrics(
    subject: ModelBundle | Pictures,
    data: Pictures,
    extractors: Sequence[OpenExtractor],
    wanted: Wanted,
    align: Align | None,
) -> frozenset[Metric]:
    """The metrics that will be measured. Raises RequestError for one that was asked for and cannot be."""
    model = subject if isinstance(subject, ModelBundle) else None
    named = data if isinstance(subject, ModelBundle) else subject
    scenes = align is not None and all("things" in record for record in (*data.records, *named.records))
    captions = all(str(r.get("caption") or "") for r in named.records)
    with_clip = any(e.clip is not None for e in extractors)
    with_classes = any(e.kind != "clip" for e in extractors)
    if wanted.metrics is None:
        chosen = (
            {Metric.FRECHET, Metric.KERNEL, Metric.PRECISION_RECALL, Metric.DENSITY_COVERAGE} if extractors else set()
        )
        chosen |= {Metric.INCEPTION_SCORE} if with_classes else set()
        chosen |= {Metric.CLIP_SCORE} if with_clip and captions else set()
        chosen |= {Metric.ALIGNMENT} if scenes else set()
        chosen |= {Metric.RECONSTRUCTION} if model is not None and model.autoencoder is not None else set()
        if not chosen:
            raise RequestError(
                "nothing can be measured without features: give --features classifier=FILE, clip=FILE-OR-FOLDER or "
                "inception=FILE"
            )
        return frozenset(chosen)
    for metric in wanted.metrics:
        problem = None
        if metric in SET_METRICS | {Metric.CLIP_SCORE} and not extractors:
            problem = "needs features: give --features"
        elif metric is Metric.INCEPTION_SCORE and not with_classes:
            problem = "needs classes: give --features inception=FILE or classifier=FILE"
        elif metric is Metric.CLIP_SCORE and not with_clip:
            problem = "needs both towers of a CLIP: give --features clip=FILE-OR-FOLDER"
        elif metric is Metric.CLIP_SCORE and not captions:
            problem = "needs a caption for each picture: the folder of pictures has none"
        elif metric is Metric.ALIGNMENT and not scenes:
            problem = "is of the shapes data alone: the records tell of no scenes (docs/data.md, captioned shapes)"
        elif metric in OF_MODELS and model is None:
            problem = "is measured of a model: give one instead of --pictures"
        elif metric is Metric.RECONSTRUCTION and model is not None and model.autoencoder is None:
            problem = f"needs an autoencoder: model {model.info.name} works on pixels"
        elif metric is Metric.BITS and model is not None and model.autoencoder is not None:
            problem = f"is of pixels: model {model.info.name} works on latents"
        if problem is not None:
            raise RequestError(f"metric {metric} {problem}")
    if model is not None:
        told(model)
    return wanted.metrics


def _halves(count: int, samples: int, wanted: Wanted, against_real: bool) -> Halves:
    """The reference and, where there is something to compare, as many others."""
    if wanted.floor and against_real:
        return split_real(count, samples, wanted.seed)
    whole = split_real(count, samples, wanted.seed, floor=False).reference
    return Halves(whole if against_real else whole[:samples], [])


def _with_extractor(
    extractor: OpenExtractor,
    fake: Tensor,
    records: Sequence[Record],
    real: Tensor,
    real_records: Sequence[Record],
    spare: Tensor | None,
    metrics: frozenset[Metric],
    wanted: Wanted,
) -> tuple[list[Figure], list[str]]:
    """The figures of one extractor, and what was left out."""
    figures: list[Figure] = []
    notices: list[str] = []
    seen = extractor.views(fake)
    reference = extractor.views(real)
    others = None if spare is None else extractor.views(spare)
    for metric in SetMetric:
        if Metric(metric.value) not in metrics or (metric is SetMetric.INCEPTION_SCORE and extractor.clip is not None):
            continue
        try:
            figures += set_figures(seen, reference, others, metrics={metric}, extractor=extractor, seed=wanted.seed)
        except DataError as error:
            if wanted.metrics is not None:
                raise
            notices.append(f"{metric} of {extractor.name} is left out: {error}")
    if Metric.CLIP_SCORE in metrics and extractor.clip is not None:
        figures.append(
            clip_figure(
                seen.features,
                [str(record["caption"]) for record in records],
                reference.features,
                [str(record["caption"]) for record in real_records],
                extractor=extractor,
                seed=wanted.seed,
            )
        )
    return figures, notices
