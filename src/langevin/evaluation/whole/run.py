"""Runs the parts of a whole evaluation one after the other; each is kept when it is done, and a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from langevin.checkpoints.atomic import atomic_write
from langevin.errors import RequestError
from langevin.evaluation.whole.attributes import attributes, attributes_plan
from langevin.evaluation.whole.captions import captions
from langevin.evaluation.whole.page import page
from langevin.evaluation.whole.part import Part
from langevin.evaluation.whole.parts import autoencoder, clip_scores, copying, distances, sheet, sheet_block
from langevin.evaluation.whole.subject import Block, Clock, Subject, cost, pictures_there
from langevin.evaluation.whole.sweeps import guidance_blocks, guidances, sampler_blocks, samplers
from langevin.version import __version__

FORMAT = 1
SETTINGS = "settings.json"
REPORT = "report.json"
PAGE = "model-evaluation.md"


class Entry(NamedTuple):
    """One part."""

    measure: Callable[[Subject], Part]
    blocks: Callable[[Subject], Sequence[Block]]
    """The pictures that it needs."""


PARTS: Mapping[str, Entry] = {
    "distances": Entry(distances, lambda s: [s.known, s.new]),
    "clip-score": Entry(clip_scores, lambda s: [s.known, s.new]),
    "copying": Entry(copying, lambda s: [s.known, s.new]),
    "attributes": Entry(attributes, lambda s: [attributes_plan(s)]),
    "captions": Entry(captions, lambda s: []),
    "sheet": Entry(sheet, lambda s: [sheet_block(s)]),
    "autoencoder": Entry(autoencoder, lambda s: []),
    "samplers": Entry(samplers, sampler_blocks),
    "guidance": Entry(guidances, guidance_blocks),
}
"""In the order of the page."""


def evaluate_whole(subject: Subject, parts: Sequence[str] = tuple(PARTS), *, command: str = "") -> dict[str, Any]:
    """Measure the parts that are not there yet; write report, page and pictures into the subject's folder.

    command: is named in the page. Returns the report, of all parts that are there. Raises RequestError for an unknown
    part, or a folder in which something else was measured.
    """
    for name in parts:
        if name not in PARTS:
            raise RequestError(f"part {name!r} is unknown; choose from {', '.join(PARTS)}")
    folder = subject.folder
    settings = subject.settings()
    _check_settings(folder, settings)
    missing = [name for name in PARTS if name in parts and not (folder / f"{name}.json").is_file()]
    subject.clock = Clock(_work(subject, missing), subject.say)
    for name in missing:
        subject.say(f"{name} ...")
        began = time.perf_counter()
        found = PARTS[name].measure(subject).to_json()
        found["seconds"] = round(time.perf_counter() - began, 1)
        _write(folder / f"{name}.json", found)
        left = f"; about {subject.clock.minutes:.0f} min more for pictures" if subject.clock.minutes else ""
        subject.say(f"{name}: {found['seconds']:.0f} s{left}")
    there = {name: _read(folder / f"{name}.json") for name in PARTS if (folder / f"{name}.json").is_file()}
    report = {"format": FORMAT, "program": f"langevin {__version__}", "settings": settings, "parts": there}
    _write(folder / REPORT, report)
    with atomic_write(folder / PAGE) as temporary:
        temporary.write_text(page(report, command), encoding="utf-8")
    return report


def _work(subject: Subject, parts: Sequence[str]) -> float:
    """Of all pictures that are still to be made, in calls of the denoiser; each block once."""
    blocks = {block.name: block for name in parts for block in PARTS[name].blocks(subject)}
    return sum(
        cost(subject, block) * max(0, len(block.prompts) - pictures_there(subject, block)) for block in blocks.values()
    )


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """RequestError where the folder holds another evaluation, or cannot be written to."""
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = _read(path) if path.is_file() else None
        if there is None:
            _write(path, settings)
            return
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} cannot be used for the evaluation ({error}): give another --out") from None
    for name, value in json.loads(json.dumps(settings)).items():
        if there.get(name) != value:
            raise RequestError(
                f"{folder} holds an evaluation with another {name}: give the same options to go on with it, or another "
                "--out"
            )


def _write(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
