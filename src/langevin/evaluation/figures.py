"""A measured figure with everything that it needs beside it to mean something, and a report of several."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from langevin.checkpoints.atomic import atomic_write
from langevin.version import __version__

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number."""

    name: str
    value: float
    better: Literal["lower", "higher"]
    deviation: float | None = None
    """Standard deviation over the parts of the data that it was averaged over; not the error of the mean."""
    real: float | None = None
    """The same figure of real pictures against other real ones: the floor of a distance, the ceiling of a share."""
    chance: float | None = None
    """The same figure of real pictures with the texts of others: what pictures get that heed no text."""
    extractor: str | None = None
    weights_sha256: str | None = None
    """Of the extractor."""
    generated: int = 0
    """Pictures of the model that were measured."""
    reference: int = 0
    """Real pictures that they were compared with."""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Neighbours, subsets, steps ..."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; those that are not finite as text."""
        return {k: _plain(v) for k, v in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `langevin evaluate` found."""

    subject: Mapping[str, Any]
    """The model with its files' hashes and how its pictures were made, or the folder of pictures."""
    data: Mapping[str, Any]
    """The real pictures: place, fingerprint, number, what was chosen."""
    figures: tuple[Figure, ...]
    notices: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures that are not finite as text."""
        return {
            "format": FORMAT,
            "program": f"langevin {__version__}",
            "subject": dict(self.subject),
            "data": dict(self.data),
            "figures": [figure.to_json() for figure in self.figures],
            "notices": list(self.notices),
            "seconds": round(self.seconds, 1),
        }

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plot_report(report: Report, path: Path) -> None:
    """A panel for each figure: the model's beside that of real pictures and of chance. Needs Matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    columns = min(5, len(report.figures))
    rows = math.ceil(len(report.figures) / columns)
    drawing = Drawing(figsize=(2.4 * columns, 2.2 * rows), layout="constrained")
    FigureCanvasAgg(drawing)
    for place, figure in enumerate(report.figures):
        axes = drawing.add_subplot(rows, columns, place + 1)
        bars = {"model": figure.value, "real": figure.real, "chance": figure.chance}
        shown = {name: value for name, value in bars.items() if value is not None and math.isfinite(value)}
        colours = {"model": "#4477aa", "real": "#999999", "chance": "#ccbb44"}
        axes.bar(list(shown), list(shown.values()), color=[colours[name] for name in shown], width=0.6)
        axes.set_title(f"{figure.name}\n({figure.better} is better)", fontsize=8)
        axes.tick_params(labelsize=7)
        if figure.extractor is not None:
            axes.set_xlabel(textwrap.fill(figure.extractor, 34), fontsize=6)
    with atomic_write(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return dict(value) if isinstance(value, Mapping) else value
