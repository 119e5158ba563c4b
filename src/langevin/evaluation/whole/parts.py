"""Distances, CLIP score, copying, the sheet and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.evaluation.features import Views
from langevin.evaluation.figures import Figure
from langevin.evaluation.nearest import NEIGHBOURS, Nearest, nearest, pixel_vectors, share_nearer
from langevin.evaluation.pairs import reconstructed, reconstruction_figures
from langevin.evaluation.principal import Principal
from langevin.evaluation.sets import SetMetric, clip_figure, set_figures
from langevin.evaluation.whole.part import Part
from langevin.evaluation.whole.plots import Bar, plot_bars, plot_histograms
from langevin.evaluation.whole.subject import Block, Subject

SHOWN = 32
"""Samples on the memorisation sheet."""
COPIES = 64
"""Training pictures through the autoencoder: what the model's copies would look like."""
QUANTILE = 0.05
COLUMNS = 8


def distances(subject: Subject) -> Part:
    """Frechet and kernel distances, precision and recall, each beside that of real pictures.

    The Frechet distance is taken in as many principal components of the training pictures' features as half the number
    of pictures, so that covariances are of full rank; in all of them where there are pictures enough.
    """
    reference, others = subject.halves
    held_reference, held_others = subject.held_out_halves
    train, held = subject.train_features, subject.held_out_features
    known, new = subject.features(subject.known), subject.features(subject.new)
    some = min(len(known), len(held))
    rows: list[tuple[str, Tensor, Tensor, Tensor]] = [
        ("known names, training pictures", known, train[reference], train[others]),
        ("known names, held-out pictures", known[:some], held[:some], train[others][:some]),
        ("new names, held-out pictures", new, held[held_reference], held[held_others]),
    ]
    figures: list[Figure] = []
    for name, fake, real, spare in rows:
        few = Principal.of(train, min(train.shape[1], len(fake) // 2))
        sets = [(SetMetric.FRECHET, [few(part).float() for part in (fake, real, spare)])]
        sets += [(metric, [fake, real, spare]) for metric in (SetMetric.KERNEL, SetMetric.PRECISION_RECALL)]
        for metric, (a, b, c) in sets:
            found = set_figures(
                Views(a, None), Views(b, None), Views(c, None), metrics={metric}, extractor=subject.extractor,
                seed=subject.scale.seed,
            )  # fmt: skip
            settings = {"components": few.axes.shape[1], "of": train.shape[1]} if metric is SetMetric.FRECHET else {}
            figures += [replace(f, name=f"{f.name}: {name}", settings={**f.settings, **settings}) for f in found]
    panels: dict[str, list[Bar]] = {}
    for what in ("frechet distance", "precision", "recall"):
        named = [f for f in figures if f.name.startswith(f"{what}: ")]
        panels[what] = [Bar(f.name.partition(": ")[2].replace(", ", ",\n"), f.value, f.real) for f in named]
    plot_bars(subject.image("distances"), panels)
    return Part(figures=tuple(figures))


def clip_scores(subject: Subject) -> Part:
    """The CLIP score of known and of new names, beside that of real pictures and of captions that were exchanged."""
    figures = []
    for name, block, features, places in (
        ("known names", subject.known, subject.train_features, subject.halves[1]),
        ("new names", subject.new, subject.held_out_features, subject.held_out_halves[1]),
    ):
        captions = list(block.prompts)
        found = clip_figure(
            subject.features(block), captions, features[places], captions, extractor=subject.extractor,
            seed=subject.scale.seed,
        )  # fmt: skip
        figures.append(replace(found, name=f"clip score: {name}"))
    bars = [Bar(f.name.partition(": ")[2], f.value, f.real, f.chance) for f in figures]
    plot_bars(subject.image("clip-score"), {"CLIP score": bars})
    return Part(figures=tuple(figures))


def copying(subject: Subject) -> Part:
    """How near the model's pictures lie to training pictures, beside real pictures and beside copies.

    Distances are compared with those of held-out real pictures, as they are and relative to further neighbours; a
    picture is *as near as a copy* if it is within the distance of 95 % of the copies, which are training pictures
    through the autoencoder. Real pictures of known names are training pictures, each compared with all others.
    """
    train, others = subject.train, subject.halves[1]
    copies = reconstructed(subject.bundle, train.pictures[subject.halves[0][:COPIES]], subject.scale.batch)
    sets: dict[str, tuple[Tensor, Tensor]] = {
        "known names": (subject.features(subject.known), subject.made(subject.known)),
        "new names": (subject.features(subject.new), subject.made(subject.new)),
        "training pictures": (subject.train_features[others], train.pictures[others]),
        "held-out pictures": (subject.held_out_features, subject.held_out.pictures),
        "copies": (subject.extractor.views(copies).features, copies),
    }
    figures: list[Figure] = []
    panels: dict[str, dict[str, list[float]]] = {}
    neighbours: dict[str, Nearest] = {}
    for space, vectors in _SPACES.items():
        references = vectors(subject.train_features, train.pictures)
        found = {
            name: nearest(vectors(*pair), references, own=torch.tensor(others) if name == "training pictures" else None)
            for name, pair in sets.items()
        }
        neighbours[space] = found["known names"]
        away = {name: result.distances for name, result in found.items()}
        relative = {name: result.relative for name, result in found.items()}
        panels[f"{space}: distance"] = {name: values.tolist() for name, values in away.items()}
        panels[f"{space}: relative distance"] = {name: values.tolist() for name, values in relative.items()}
        limit = away["copies"].quantile(1 - QUANTILE)
        for name, real in (("known names", "training pictures"), ("new names", "held-out pictures")):
            for what, of, share in (
                (_NEARER, away, partial(share_nearer, others=away["held-out pictures"])),
                (_RELATIVELY, relative, partial(share_nearer, others=relative["held-out pictures"])),
                (_COPY, away, partial(_share_within, limit=limit)),
            ):
                figures.append(
                    Figure(
                        name=f"{what}: {name}, {space}", value=share(of[name]), better="lower", real=share(of[real]),
                        generated=len(of[name]), reference=len(of[real]), seed=subject.scale.seed,
                        settings={"train": len(references), "copies": len(copies), "neighbours": NEIGHBOURS},
                    )
                )  # fmt: skip
    plot_histograms(subject.image("copying"), panels)
    sheets = _memorisation_sheets(subject, neighbours)
    medians = {
        space: {name: float(torch.tensor(values).median()) for name, values in of.items()}
        for space, of in panels.items()
    }
    details = {"median_distance": medians, "verdict": _verdict(figures), "sheets": sheets}
    return Part(figures=tuple(figures), details=details)


_SPACES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "CLIP features": lambda features, pictures: F.normalize(features, dim=1),
    "pixels": lambda features, pictures: pixel_vectors(pictures),
}


def _share_within(distances: Tensor, limit: Tensor) -> float:
    return float((distances <= limit).float().mean())


_NEARER = "nearer than a new picture"
_RELATIVELY = "relatively nearer than a new picture"
_COPY = "as near as a copy"


def _verdict(figures: Sequence[Figure]) -> str:
    """What the figures of known names mean, in pixels, by a rule that the sentence tells."""
    figure = {f.name.partition(":")[0]: f for f in figures if f.name.endswith(": known names, pixels")}
    copied, nearer = figure[_COPY], figure[_RELATIVELY]
    if copied.value >= 0.5:
        found = "The model mostly draws copies"
    elif nearer.value >= 0.75:
        found = "The model draws what it has seen"
    elif nearer.value >= 0.6:
        found = "The model leans on what it has seen"
    else:
        found = "The model's pictures are no nearer to single training pictures than new ones are"
    return (
        f"{found}: in {nearer.value:.0%} of all pairs its picture of a known name is relatively nearer to a training "
        "picture than a new real one (50% would be no difference; real pictures of known names, whose drawings may "
        f"recur in other styles: {nearer.real or 0:.0%}), and {copied.value:.0%} are as near as a copy (real: "
        f"{copied.real or 0:.0%}), in pixels."
    )


def _memorisation_sheets(subject: Subject, neighbours: Mapping[str, Nearest]) -> list[str]:
    """Sheets of three rows: samples, the nearest by CLIP features, the nearest by pixels."""
    made, train = subject.made(subject.known), subject.train
    count = min(SHOWN, len(made))
    pictures: list[Tensor] = []
    labels: list[str] = []
    for start in range(0, count, COLUMNS):
        band = range(start, min(start + COLUMNS, count))
        pictures += [made[i] for i in band]
        labels += [f"{subject.known.seed + i}: {subject.known.prompts[i]}" for i in band]
        for space, found in neighbours.items():
            pictures += [train.pictures[found.places[i]] for i in band]
            names = [train.records[place]["caption"] for place in found.places.tolist()]
            labels += [f"{space.removesuffix(' features')} {found.distances[i]:.2f}: {names[i]}" for i in band]
    return subject.save_sheet("memorisation", pictures, labels, min(COLUMNS, count))


def sheet(subject: Subject) -> Part:
    """Prompts in the order of the alphabet, at equal distances among all names, every other one with a style."""
    block = sheet_block(subject)
    made = list(subject.made(block))
    labels = [f"{seed}: {prompt}" for seed, prompt in enumerate(block.prompts)]
    sheets = subject.save_sheet("sheet", made, labels, COLUMNS)
    return Part(details={"prompts": list(block.prompts), "sheets": sheets})


def sheet_block(subject: Subject) -> Block:
    """The sheet's prompts, with the seeds from 0 on."""
    count = min(subject.scale.sheet, len(subject.names))
    names = [subject.names[i * len(subject.names) // count] for i in range(count)]
    words = [said[0] for said in subject.styles.values()]
    prompts = [f"{n}, {words[i // 2 % len(words)]}" if i % 2 and words else n for i, n in enumerate(names)]
    return subject.block("sheet", prompts)._replace(seed=0)


def autoencoder(subject: Subject) -> Part:
    """PSNR and SSIM of training and held-out pictures through the autoencoder."""
    figures = []
    shown: list[Tensor] = []
    columns = min(COLUMNS, len(subject.halves[0]))
    for name, data, places in (
        ("training pictures", subject.train, subject.halves[0]),
        ("held-out pictures", subject.held_out, list(range(len(subject.held_out.records)))),
    ):
        some = data.pictures[places[: subject.scale.samples]]
        found = reconstruction_figures(subject.bundle, some, seed=subject.scale.seed, batch=subject.scale.batch)
        figures += [replace(f, name=f"{f.name}: {name}") for f in found]
        few = data.pictures[places[:columns]]
        shown += [*few, *reconstructed(subject.bundle, few, subject.scale.batch)]
    rows = ("training picture", "decoded", "held-out picture", "decoded")
    sheets = subject.save_sheet("autoencoder", shown, [row for row in rows for _ in range(columns)], columns, rows=4)
    return Part(figures=tuple(figures), details={"sheets": sheets})
