"""One table and one plot of compared families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from langevin.baselines.compare import Result
from langevin.checkpoints.atomic import atomic_write
from langevin.evaluation.figures import Figure

_HEADER = (
    "family", "Frechet", "precision", "recall", "density", "coverage", "bits/dim", "s/picture", "s alone",
    "parameters", "training s", "setup s", "images seen",
)  # fmt: skip
_SHARES = ("precision", "recall", "density", "coverage")


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a row for each family and one for real pictures in the place of generated ones."""
    rows = [_HEADER, *map(_row, results), _floors(results[0])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def notes(results: Sequence[Result]) -> str:
    """What the table's figures need beside them."""
    frechet = results[0].figure("frechet")
    assert frechet is not None
    ways = sorted({f.name for r in results if (f := r.figure("bits/dim")) is not None})
    measured = next((f.reference for r in results if (f := r.figure("bits/dim")) is not None), 0)
    lines = [
        f"{frechet.generated} pictures a family against {frechet.reference} held-out real ones, seed {frechet.seed}; "
        "the last row: as many others.",
        f"Features: {frechet.extractor}, sha256 {(frechet.weights_sha256 or '')[:12]}.",
    ]
    if ways:
        lines.append(f"bits/dim of {measured} held-out pictures: {', '.join(ways)}; none for the others.")
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path) -> None:
    """Quality over the cost of a picture, and fidelity over coverage: one point a family. Needs Matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(drawing)
    cost, kinds = drawing.subplots(1, 2)
    for result in results:
        distance = _value(result.figure("frechet"))
        cost.scatter(result.seconds_per_picture, distance)
        cost.annotate(result.family, (result.seconds_per_picture, distance), xytext=(5, 4), textcoords="offset points")
        place = _value(result.figure("recall")), _value(result.figure("precision"))
        kinds.scatter(*place)
        kinds.annotate(result.family, place, xytext=(5, 4), textcoords="offset points")
    floor = results[0].figure("frechet")
    if floor is not None and floor.real is not None and floor.real > 0:
        cost.axhline(floor.real, color="grey", linewidth=0.8, linestyle="--", label="real pictures")
        cost.legend(fontsize=8)
    best = results[0].figure("recall"), results[0].figure("precision")
    if all(f is not None and f.real is not None for f in best):
        kinds.scatter(*(f.real for f in best if f is not None), color="grey", marker="x")
        kinds.annotate("real pictures", [f.real for f in best if f is not None], xytext=(5, 4),
                       textcoords="offset points", color="grey")  # fmt: skip
    cost.set(xscale="log", yscale="log", xlabel="sampling, seconds a picture", ylabel="Frechet distance")
    kinds.set(xlim=(-0.02, 1.05), ylim=(-0.02, 1.05), xlabel="recall", ylabel="precision")
    for axes in (cost, kinds):
        axes.margins(0.2)
        axes.grid(linewidth=0.3)
    with atomic_write(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=120)


def _row(result: Result) -> tuple[str, ...]:
    bits = result.figure("bits/dim")
    return (
        result.family,
        f"{_value(result.figure('frechet')):.3g}",
        *(f"{_value(result.figure(name)):.3f}" for name in _SHARES),
        "-" if bits is None else f"{bits.value:.3f}",
        f"{result.seconds_per_picture:.3g}",
        f"{result.seconds_alone:.3g}",
        f"{result.parameters:,}",
        f"{result.training_seconds:.0f}",
        f"{sum(s.setup_seconds for s in result.stages.values()):.0f}",
        " + ".join(f"{s.images:,}" for s in result.stages.values()),
    )


def _floors(result: Result) -> tuple[str, ...]:
    def real(name: str) -> float:
        figure = result.figure(name)
        return float("nan") if figure is None or figure.real is None else figure.real

    return (
        "real pictures", f"{real('frechet'):.3g}", *(f"{real(name):.3f}" for name in _SHARES),
        *["-"] * (len(_HEADER) - 2 - len(_SHARES)),
    )  # fmt: skip


def _value(figure: Figure | None) -> float:
    return float("nan") if figure is None else figure.value
