"""Whether pictures show the colour, the style, the number and the thing that was asked for, as far as pixels tell."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.evaluation.attribute_prompts import (
    COLOURS,
    AttributePrompt,
    attribute_prompts,
    coloured_names,
    plain_names,
)
from langevin.evaluation.colours import NAMES, PRESENT, colour_shares
from langevin.evaluation.counting import count_things, side_by_side
from langevin.evaluation.features import embed_texts
from langevin.evaluation.figures import Figure
from langevin.evaluation.linear_probe import LinearProbe, style_statistics
from langevin.evaluation.pairs import reconstructed
from langevin.evaluation.retrieval import places_of, ranks, share_found
from langevin.evaluation.run import Pictures
from langevin.evaluation.whole.part import Part
from langevin.evaluation.whole.plots import Bar, plot_bars
from langevin.evaluation.whole.subject import Block, Subject

TEN = 10
COLUMNS = 6
SHOWN = 2 * COLUMNS
"""Pictures of each kind on the sheet."""
_TRIED = 150
"""Names of which the real pictures are counted."""
_FITTED = 100
"""Training pictures of each style that the style's classifier is fitted on."""
_JUDGED = 300
"""Held-out pictures that it is tried on."""


class Judges:
    """The measures, with what they reach on real pictures."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    # -- colour ---------------------------------------------------------------------------------------------------

    @cached_property
    def colour_ceiling(self) -> tuple[float, float, int]:
        """Of real pictures that are called by a colour: how many show it, how many show one of the others on average,
        and how many pictures those are. Styles that are called black or white are left out."""
        wanted: list[str] = []
        pictures: list[Tensor] = []
        for data in (self.subject.train, self.subject.held_out):
            known = coloured_names(data.records)
            for i, record in enumerate(data.records):
                words = " ".join(self.subject.styles.get(str(record.get("style")), ()))
                if str(record["caption"]) in known and not set(words.split()) & set(NAMES):
                    wanted.append(known[str(record["caption"])])
                    pictures.append(data.pictures[i])
        if not wanted:
            return float("nan"), float("nan"), 0
        present = colour_shares(torch.stack(pictures)) >= PRESENT
        own = torch.tensor([NAMES.index(colour) for colour in wanted])
        right = present.gather(1, own[:, None]).float().mean()
        asked = present[:, [NAMES.index(colour) for colour in COLOURS]].float().sum(1)
        wrong = (asked - present.gather(1, own[:, None])[:, 0].float()) / (len(COLOURS) - 1)
        return float(right), float(wrong.mean()), len(wanted)

    # -- number ---------------------------------------------------------------------------------------------------

    @cached_property
    def counted(self) -> Mapping[str, Sequence[int]]:
        """Of some names of single things: how many things their real pictures show."""
        records = self.subject.train.records
        names = plain_names(records)
        tried = set(random.Random(0).sample(names, min(_TRIED, len(names))))
        places = [i for i, record in enumerate(records) if str(record["caption"]) in tried]
        found: dict[str, list[int]] = defaultdict(list)
        for i, count in zip(places, count_things(self.subject.train.pictures[places]).tolist(), strict=True):
            found[str(records[i]["caption"])].append(count)
        return found

    @cached_property
    def countable(self) -> list[str]:
        """Names whose real pictures all show one separate thing."""
        return sorted(name for name, counts in self.counted.items() if set(counts) == {1})

    def two_ceiling(self, names: set[str]) -> tuple[float, float, int]:
        """Of real pictures set twice side by side: how many are counted as two; how many single ones are; of how many
        pictures."""
        places = [i for i, r in enumerate(self.subject.train.records) if str(r["caption"]) in names]
        pairs = count_things(side_by_side(self.subject.train.pictures[places]))
        singles = [count for counts in self.counted.values() for count in counts]
        wrong = sum(count == 2 for count in singles) / len(singles)
        return float((pairs == 2).float().mean()), wrong, len(places)

    # -- style ----------------------------------------------------------------------------------------------------

    @cached_property
    def probe(self) -> LinearProbe:
        """Fitted on training pictures after the autoencoder, whose traces the model's pictures have too: what tells raw
        drawings apart, such as areas of one very colour, does not survive it."""
        return LinearProbe.fit(*self._decoded(self.subject.train, _FITTED * len(self.subject.styles)), shrinkage=0.1)

    @cached_property
    def style_ceiling(self) -> tuple[float, int]:
        """Of held-out pictures after the autoencoder: how many are named right, of how many."""
        features, styles = self._decoded(self.subject.held_out, _JUDGED)
        right = sum(a == b for a, b in zip(self.probe(features), styles, strict=True))
        return right / len(styles), len(styles)

    def _decoded(self, data: Pictures, count: int) -> tuple[Tensor, list[str]]:
        """Features and styles of random pictures, as many of each style as there are, together `count` at most."""
        by_style: dict[str, list[int]] = defaultdict(list)
        for i, record in enumerate(data.records):
            if str(record.get("style")) in self.subject.styles:
                by_style[str(record["style"])].append(i)
        chance = random.Random(0)
        each = count // max(1, len(by_style))
        places = [i for some in by_style.values() for i in chance.sample(some, min(each, len(some)))]
        copies = reconstructed(self.subject.bundle, data.pictures[places], self.subject.scale.batch)
        features = _style_features(self.subject.extractor.views(copies).features, copies)
        return features, [str(data.records[i]["style"]) for i in places]

    # -- thing ----------------------------------------------------------------------------------------------------

    def found_of_real(self, names: set[str]) -> Tensor:
        """The ranks of the real training pictures of these names."""
        places = [i for i, r in enumerate(self.subject.train.records) if str(r["caption"]) in names]
        own = places_of([str(self.subject.train.records[i]["caption"]) for i in places], self.subject.names)
        return ranks(self.subject.train_features[places], self.subject.name_vectors, own)

    @cached_property
    def found_of_held_out(self) -> Tensor:
        """The ranks of the held-out pictures among the names of both splits."""
        captions = [str(record["caption"]) for record in self.subject.held_out.records]
        names = sorted({*self.subject.names, *captions})
        vectors = embed_texts(self.subject.clip, names)
        return ranks(self.subject.held_out_features, vectors, places_of(captions, names))


def attributes_plan(subject: Subject) -> Block:
    """As many pictures as `attributes` will make, for the estimate of the time."""
    return subject.block("attributes", [""] * subject.scale.attributes)


def attributes(subject: Subject) -> Part:
    """Shares of the attribute prompts whose pictures show what was asked for, beside the measures' own shares on real
    pictures and on real pictures of something else."""
    judges, seed = Judges(subject), subject.scale.seed
    prompts = attribute_prompts(
        subject.train.records, subject.styles, judges.countable, count=subject.scale.attributes, seed=seed
    )
    block = subject.block("attributes", [p.prompt for p in prompts])
    pictures, features = subject.made(block), subject.features(block)
    outcomes = _outcomes(judges, prompts, pictures, features)
    figures: list[Figure] = []

    def add(name: str, hits: list[bool], real: float | None, chance: float | None, reference: int) -> None:
        if hits:
            value = sum(hits) / len(hits)
            figures.append(
                Figure(
                    name=name, value=value, better="higher", real=real, chance=chance, generated=len(hits),
                    reference=reference, seed=seed,
                )
            )  # fmt: skip

    of = {kind: [o for o in outcomes if o["kind"] == kind] for kind in ("colour", "style", "two")}
    right, wrong, coloured = judges.colour_ceiling
    for name, some in (
        ("colour", of["colour"]),
        ("colour, pairs in the data", [o for o in of["colour"] if o["known"]]),
        ("colour, new pairs", [o for o in of["colour"] if not o["known"]]),
    ):
        add(name, [o["right"] for o in some], right, wrong, coloured)
    named, held_out = judges.style_ceiling
    add("style", [o["right"] for o in of["style"]], named, 1 / len(subject.styles), held_out)
    pairs, singles, composed = judges.two_ceiling({o["name"] for o in of["two"]})
    add("two things", [o["right"] for o in of["two"]], pairs, singles, composed)
    for kind, asked in of.items():
        real = judges.found_of_real({o["name"] for o in asked})
        for first, words in ((1, "first"), (TEN, "among ten")):
            hits = [o["rank"] < first for o in asked]
            chance = min(1.0, first / len(subject.names))
            add(f"thing {words}, {kind} prompts", hits, share_found(real, first), chance, len(real))
    add("colour and thing among ten", [o["right"] and o["rank"] < TEN for o in of["colour"]], None, None, 0)

    bars = [Bar(f.name, f.value, f.real, f.chance) for f in figures]
    plot_bars(subject.image("attributes"), {"share of the pictures that show what was asked for": bars})
    shown = [i for kind in of for i in [k for k, o in enumerate(outcomes) if o["kind"] == kind][:SHOWN]]
    # The verdict first: labels are cut where they get too long.
    labels = [f"{'right' if outcomes[i]['right'] else outcomes[i]['seen']}: {outcomes[i]['prompt']}" for i in shown]
    sheets = subject.save_sheet("attribute-sheet", [pictures[i] for i in shown], labels, COLUMNS, rows=2)
    singles_counted = [count for counts in judges.counted.values() for count in counts]
    details = {
        "names": len(subject.names),
        "single_pictures_counted_as_one": sum(c == 1 for c in singles_counted) / len(singles_counted),
        "single_pictures": len(singles_counted),
        "held_out_thing_first": share_found(judges.found_of_held_out),
        "held_out_thing_among_ten": share_found(judges.found_of_held_out, TEN),
        "prompts": outcomes,
        "sheets": sheets,
    }
    return Part(figures=tuple(figures), details=details)


def _outcomes(
    judges: Judges, prompts: Sequence[AttributePrompt], pictures: Tensor, features: Tensor
) -> list[dict[str, Any]]:
    """For each prompt what was seen, whether it is what was asked for, and how many names are nearer than its own."""
    subject = judges.subject
    shares, counts = colour_shares(pictures), count_things(pictures).tolist()
    styles = judges.probe(_style_features(features, pictures))
    found = ranks(features, subject.name_vectors, places_of([p.name for p in prompts], subject.names)).tolist()
    outcomes = []
    for i, p in enumerate(prompts):
        match p.kind:
            case "colour":
                seen = NAMES[int(shares[i].argmax())] if float(shares[i].sum()) else "nothing"
                right = float(shares[i, NAMES.index(p.attribute)]) >= PRESENT
            case "style":
                seen = styles[i]
                right = seen == p.attribute
            case "two":
                seen = str(counts[i])
                right = seen == p.attribute
            case _:
                assert_never(p.kind)
        outcomes.append({**p._asdict(), "seed": subject.scale.seed + i, "seen": seen, "right": right, "rank": found[i]})
    return outcomes


def _style_features(features: Tensor, pictures: Tensor) -> Tensor:
    """CLIP features beside statistics of the pixels."""
    return torch.cat([F.normalize(features, dim=1), style_statistics(pictures)], 1)
