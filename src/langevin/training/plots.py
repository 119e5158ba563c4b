"""Loss curves of a run, from its metrics file."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

from langevin.checkpoints.atomic import atomic_write
from langevin.errors import RequestError
from langevin.training import metrics

_SHOWN = ("loss", "unweighted", "psnr", "kl", "accuracy", "gradient_norm", "learning_rate")
_MEASURED = {"held_out_loss": ("", "_without"), "edge_f1": ("", "_without", "_reconstructed")}
"""Of what previews measure: each panel, and the endings of the figures in it."""


def check_plotting() -> None:
    """RequestError where Matplotlib is missing: to be said before hours of training, not after them."""
    if find_spec("matplotlib") is None:
        raise RequestError("training draws its loss curves with matplotlib, which is missing: pip install matplotlib")


def plot_metrics(folder: Path) -> Path | None:
    """Draw the curves of `folder/metrics.jsonl`, and what previews measured, into `folder/metrics.png`: its path, None
    where nothing is recorded."""
    # Matplotlib's objects rather than pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = metrics.read(folder / "metrics.jsonl")
    if not rows:
        return None
    names = [name for name in _SHOWN if name in rows[-1]]
    measured = metrics.read(folder / "measured.jsonl")
    more = [name for name in _MEASURED if measured and name in measured[-1]]
    columns = len(names) + len(more)
    figure = Figure(figsize=(3.6 * columns, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, columns, place + 1)
        axes.plot([r["step"] for r in rows], [r.get(name, math.nan) for r in rows], linewidth=0.8)
        axes.set_title(name)
        axes.set_xlabel("step")
        if name in ("loss", "unweighted", "kl"):
            axes.set_yscale("log")
    for place, name in enumerate(more, len(names)):
        axes = figure.add_subplot(1, columns, place + 1)
        for ending in _MEASURED[name]:
            values = [r.get(name + ending, math.nan) for r in measured]
            axes.plot([r["step"] for r in measured], values, ".-", linewidth=0.8, label=ending.lstrip("_") or "with")
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.legend(fontsize=7)
    path = folder / "metrics.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
