"""Quality over the number of steps, for several samplers, and over guidance: the same prompts and seeds throughout."""

from __future__ import annotations

from typing import Any

from langevin.evaluation.distances import frechet_distance
from langevin.evaluation.features import clip_score, embed_texts
from langevin.evaluation.principal import Principal
from langevin.evaluation.retrieval import places_of, ranks, share_found
from langevin.evaluation.whole.part import Part
from langevin.evaluation.whole.plots import Panel, plot_lines
from langevin.evaluation.whole.subject import Block, Subject
from langevin.tasks.from_text import completed


def sampler_blocks(subject: Subject) -> list[Block]:
    """The pictures of every sampler at every number of steps."""
    return [
        _point(subject, sampler, steps, None) for sampler in subject.scale.samplers for steps in subject.scale.steps
    ]


def guidance_blocks(subject: Subject) -> list[Block]:
    """The pictures at every guidance."""
    return [_point(subject, None, None, guidance) for guidance in subject.scale.guidances]


def samplers(subject: Subject) -> Part:
    """Frechet distance and share of the things found, over steps, for each sampler."""
    measure = _Measure(subject)
    points = [measure(block) for block in sampler_blocks(subject)]
    steps = subject.scale.steps

    def lines(what: str) -> dict[str, list[float]]:
        return {sampler: [p[what] for p in points if p["sampler"] == sampler] for sampler in subject.scale.samplers}

    panels = [
        Panel(_FRECHET, lines("frechet"), measure.real["frechet"]),
        Panel(_FOUND, lines("found"), measure.real["found"]),
    ]
    plot_lines(subject.image("samplers"), steps, "steps", panels, log=True)
    return Part(details={"points": points, "real": measure.real, "components": measure.components})


def guidances(subject: Subject) -> Part:
    """Frechet distance, share of the things found and CLIP score, over guidance."""
    measure = _Measure(subject)
    points = [measure(block) for block in guidance_blocks(subject)]
    panels = [
        Panel(title, {"model": [p[what] for p in points]}, measure.real[what])
        for title, what in ((_FRECHET, "frechet"), (_FOUND, "found"), ("CLIP score (higher is better)", "clip_score"))
    ]
    plot_lines(subject.image("guidance"), subject.scale.guidances, "guidance", panels)
    return Part(details={"points": points, "real": measure.real, "components": measure.components})


_FRECHET = "Frechet distance (lower is better)"
_FOUND = "thing found first (higher is better)"


class _Measure:
    """What is measured at each point. The reference are the training pictures of the distances; the Frechet distance is
    taken in half as many components as there are pictures at a point."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        reference, places = subject.halves[0], _places(subject)
        train = subject.train_features
        self.few = Principal.of(train, min(train.shape[1], min(len(reference), len(places)) // 2))
        self.components = self.few.axes.shape[1]
        self.reference = self.few(train[reference])
        captions = [str(subject.train.records[i]["caption"]) for i in places]
        self.own = places_of(captions, subject.names)
        self.texts = embed_texts(subject.clip, _prompts(subject))
        self.real = self._of(train[places])

    def __call__(self, block: Block) -> dict[str, Any]:
        request = completed(block.request.changed(seed=0), self.subject.bundle)
        settings = {"sampler": request.sampler, "steps": request.steps, "guidance": request.guidance}
        return {**settings, "pictures": len(block.prompts), **self._of(self.subject.features(block))}

    def _of(self, features: Any) -> dict[str, float]:
        found = ranks(features, self.subject.name_vectors, self.own)
        return {
            "frechet": frechet_distance(self.reference, self.few(features)),
            "found": share_found(found),
            "found_among_ten": share_found(found, 10),
            "clip_score": float(clip_score(features, self.texts).mean()),
        }


def _places(subject: Subject) -> list[int]:
    """Training pictures whose captions are drawn."""
    return subject.halves[1][: subject.scale.sweep_samples]


def _prompts(subject: Subject) -> list[str]:
    return [subject.styled(subject.train.records[i]) for i in _places(subject)]


def _point(subject: Subject, sampler: str | None, steps: int | None, guidance: float | None) -> Block:
    """Equal settings have equal names: no picture is made twice for two curves."""
    chosen = {"sampler": sampler, "steps": steps, "guidance": guidance}
    options = {name: value for name, value in chosen.items() if value is not None}
    request = subject.request.changed(**options)
    full = completed(request.changed(seed=0), subject.bundle)
    return subject.block(f"{full.sampler}-{full.steps}-{full.guidance:g}", _prompts(subject), request)
