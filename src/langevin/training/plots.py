"""Loss curves of a run, from its metrics file."""

from __future__ import annotations

import json
from pathlib import Path

from langevin.checkpoints.atomic import atomic_write

_SHOWN = ("loss", "unweighted", "psnr", "kl", "accuracy", "gradient_norm", "learning_rate")


def plot_metrics(folder: Path) -> Path:
    """Draw the curves of `folder/metrics.jsonl` into `folder/metrics.png` and return its path."""
    # Matplotlib's objects rather than pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [name for name in _SHOWN if name in rows[-1]]
    figure = Figure(figsize=(3.6 * len(names), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        axes.plot([r["step"] for r in rows], [r[name] for r in rows], linewidth=0.8)
        axes.set_title(name)
        axes.set_xlabel("step")
        if name in ("loss", "unweighted", "kl"):
            axes.set_yscale("log")
    path = folder / "metrics.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
