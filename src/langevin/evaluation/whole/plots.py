"""The plots of the whole evaluation, readable at the width of a page. They need Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from langevin.checkpoints.atomic import atomic_write

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
"""Told apart by colour-blind readers too (Paul Tol's bright scheme)."""
_GREY = "#999999"
_WIDTH = 8.0
"""Inches; at 110 dots each, as wide as a page."""


class Bar(NamedTuple):
    """A figure beside what real pictures get and what chance gets."""

    label: str
    value: float
    real: float | None = None
    chance: float | None = None


class Panel(NamedTuple):
    """Lines over a common axis."""

    title: str
    lines: Mapping[str, Sequence[float]]
    level: float | None = None
    """What real pictures get: drawn as a dashed line."""


def plot_bars(path: Path, panels: Mapping[str, Sequence[Bar]]) -> None:
    """A panel for each title, its bars lying one below the other."""
    figure = _figure(0.9 + 0.42 * max(len(bars) for bars in panels.values()))
    for place, (title, bars) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        rows = range(len(bars))
        for offset, name, colour, values in (
            (-0.27, "model", COLOURS[0], [bar.value for bar in bars]),
            (0.0, "real", _GREY, [bar.real for bar in bars]),
            (0.27, "chance", COLOURS[3], [bar.chance for bar in bars]),
        ):
            shown = [(row, v) for row, v in zip(rows, values, strict=True) if v is not None and math.isfinite(v)]
            if shown:
                places = [row + offset for row, _ in shown]
                drawn = axes.barh(places, [v for _, v in shown], height=0.25, color=colour, label=name)
                axes.bar_label(drawn, fmt="%.3g", fontsize=7, padding=2)
        axes.set_yticks(list(rows), [bar.label for bar in bars], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.3)  # room for the figures behind the bars
        axes.set_title(title, fontsize=10)
        axes.tick_params(axis="x", labelsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    _save(figure, path)


def plot_lines(path: Path, x: Sequence[float], label: str, panels: Sequence[Panel], *, log: bool = False) -> None:
    """Panels side by side over the same x."""
    figure = _figure(3.2)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for (name, values), colour in zip(panel.lines.items(), COLOURS, strict=False):
            axes.plot(x, values, ".-", color=colour, linewidth=1.2, label=name)
        if panel.level is not None and math.isfinite(panel.level):
            axes.axhline(panel.level, color=_GREY, linestyle="--", linewidth=1, label="real pictures")
        if log:
            axes.set_xscale("log")
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.minorticks_off()
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
    _save(figure, path)


def plot_histograms(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """For each title the distributions of several sets, each as shares of its own number."""
    rows = math.ceil(len(panels) / 2)
    figure = _figure(2.7 * rows + 0.4)
    for place, (title, sets) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, 2, place)
        high = max((max(values) for values in sets.values()), default=1.0) or 1.0
        edges = [high * i / 30 for i in range(31)]
        for (name, values), colour in zip(sets.items(), COLOURS, strict=False):
            weights = [1 / len(values)] * len(values)
            axes.hist(values, bins=edges, weights=weights, histtype="step", color=colour, linewidth=1.4, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("to the nearest training picture", fontsize=8)
        axes.set_ylabel("share", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    _save(figure, path)


def _figure(height: float) -> Any:
    # Matplotlib's objects rather than pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
