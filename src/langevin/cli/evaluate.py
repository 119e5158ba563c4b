"""`langevin evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langevin.cli.options import command
from langevin.errors import RequestError
from langevin.tasks.request import ModelOptions

if TYPE_CHECKING:
    from langevin.evaluation.figures import Report
    from langevin.evaluation.run import Pictures, Wanted

METRICS = (
    "frechet", "kernel", "precision-recall", "density-coverage", "inception-score", "clip-score", "reconstruction",
    "bits", "alignment",
)  # fmt: skip
"""The values of `langevin.evaluation.run.Metric` (a test compares the two)."""


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    command(app, evaluate, "evaluate", {"options": (ModelOptions, ())})


def evaluate(
    options: ModelOptions,
    model_argument: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="The model, as --model takes it. [default: the one in the package]",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="The real pictures; docs/data.md shows the formats."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="FOLDER", help="Measure these pictures instead of a model's."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="NAME,NAME...", help=f"Of {', '.join(METRICS)}. [default: all that can be]"),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--features",
            metavar="KIND=PLACE",
            help="inception=FILE, classifier=FILE, clip=FILE-OR-FOLDER, or clip for the clip.safetensors beside the "
            "model; may be given several times.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="Pictures to make. [default: 1000, at most half of the data]"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", "-s", metavar="N", help="Of the choice of real pictures; picture i has seed + i.")
    ] = 0,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="FIELD=VALUE", help="Only real pictures whose record says so."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="FIELD=VALUE", help="No real pictures whose record says so."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="N", help="Width and height that is measured. [default: the model's]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Of the sampler. [default: the model's]")
    ] = (None),
    sampler: Annotated[str | None, typer.Option("--sampler", help="As of generate. [default: dpmpp_2m]")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", "-g", metavar="X", help="As of generate. [default: the model's]")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Pictures at a time through the networks.")] = 16,
    floor: Annotated[
        bool,
        typer.Option("--floor/--no-floor", help="Measure real pictures against real ones too; else compare with all."),
    ] = True,
    likelihood_samples: Annotated[
        int, typer.Option("--likelihood-samples", metavar="N", help="Real pictures for the metric bits.")
    ] = 32,
    likelihood_steps: Annotated[
        int, typer.Option("--likelihood-steps", metavar="N", help="Intervals of the ODE for the metric bits.")
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.json",
            help="The report; its chart goes to FILE.png, the pictures to FILE-pictures, where a stopped run goes on. "
            "[default: evaluation.json]",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:
    """Measure a model's pictures, or given ones, against real ones.

    Every figure comes with its extractor, the number of pictures, the seed, and the same figure of real pictures.
    """
    if data is None:
        raise RequestError("evaluate needs real pictures: give --data FOLDER")
    if model_argument is not None and options.model is not None:
        raise RequestError("the model was given twice, as an argument and with --model: give one of them")
    if model_argument is not None:
        options = ModelOptions(**{**options.model_dump(exclude_unset=True), "model": model_argument})
    if pictures is not None:
        of_models = {"a model": options.model, "--steps": steps, "--sampler": sampler, "--guidance": guidance}
        for name, value in of_models.items():
            if value is not None:
                raise RequestError(f"--pictures is measured instead of a model: leave out {name}")
    target = out or Path("evaluation.json")
    _check_target(target)
    asked = _metrics(metrics)

    import torch

    from langevin.evaluation.extractors import open_extractor
    from langevin.evaluation.figures import plot_report
    from langevin.evaluation.run import Wanted
    from langevin.tasks.opening import check_device

    if threads:
        torch.set_num_threads(threads)
    wanted = Wanted(
        metrics=asked,
        samples=samples,
        seed=seed,
        floor=floor,
        likelihood_samples=likelihood_samples,
        likelihood_steps=likelihood_steps,
        batch=batch,
    )
    check_device(options.device)
    opened = [
        open_extractor(
            spec,
            model=None if options.model is None else Path(options.model),
            device=options.device,
            allow_pickle=options.allow_pickle,
        )
        for spec in dict.fromkeys(features or ())
    ]
    report = _measured(
        options, data, pictures, wanted, opened, target,
        request={"steps": steps, "sampler": sampler, "guidance": guidance}, size=size,
        chosen={"include": _fields("include", include), "exclude": _fields("exclude", exclude)},
    )  # fmt: skip
    report.write(target)
    typer.echo(_table(report))
    for notice in report.notices:
        typer.echo(f"notice: {notice}", err=True)
    typer.echo(f"wrote {target}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        typer.echo("notice: no chart without matplotlib: pip install matplotlib", err=True)
    else:
        plot_report(report, target.with_suffix(".png"))
        typer.echo(f"wrote {target.with_suffix('.png')}")


def _measured(
    options: ModelOptions,
    data: Path,
    pictures: Path | None,
    wanted: Wanted,
    extractors: list[Any],
    target: Path,
    *,
    request: dict[str, Any],
    size: int | None,
    chosen: dict[str, dict[str, tuple[str, ...]]],
) -> Report:
    """Reads what is to be compared, and measures it with progress on the terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from langevin.evaluation.run import evaluate as run_evaluation
    from langevin.model.bundle import ModelBundle
    from langevin.tasks.opening import open_bundle
    from langevin.tasks.request import GenerateRequest
    from langevin.training.data import DataConfig, read_data
    from langevin.training.data.alignment import alignment_figures
    from langevin.training.data.plain import first_size, read_pictures

    asked = GenerateRequest(prompt="", **{k: v for k, v in request.items() if v is not None})
    subject: ModelBundle | Pictures
    if pictures is None:
        subject = open_bundle(options)
        side = size or subject.info.default_size[0]
    else:
        side = size or first_size(pictures)
        subject = read_pictures(pictures, side)
    for extractor in extractors:
        if extractor.size not in (None, side):
            raise RequestError(
                f"{extractor.name} takes {extractor.size} x {extractor.size} pixels, not {side}: give --size "
                f"{extractor.size}, or a classifier that was trained at this size"
            )
    real = read_data(data, DataConfig(size=side, include=chosen["include"], exclude=chosen["exclude"]))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        return run_evaluation(
            subject,
            real,
            extractors,
            wanted,
            folder=target.with_name(f"{target.stem}-pictures"),
            request=asked,
            align=partial(alignment_figures, seed=wanted.seed),
            about={"size": side, **{k: {n: list(v) for n, v in fields.items()} for k, fields in chosen.items()}},
            progress=show,
        )


def _table(report: Report) -> str:
    """The figures in columns; what they share is said once below."""
    header = ("figure", "", "value", "real", "chance", "pictures", "reference")
    rows = [header]
    for figure in report.figures:
        spread = f" ± {figure.deviation:.3g}" if figure.deviation is not None else ""
        rows.append(
            (
                figure.name,
                "v" if figure.better == "lower" else "^",
                f"{figure.value:.4g}{spread}",
                "" if figure.real is None else f"{figure.real:.4g}",
                "" if figure.chance is None else f"{figure.chance:.4g}",
                str(figure.generated or ""),
                str(figure.reference or ""),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown = [lines[0]]
    last: str | None = None
    for line, figure in zip(lines[1:], report.figures, strict=True):
        if figure.extractor != last:
            last = figure.extractor
            shown.append(f"-- {last}, sha256 {(figure.weights_sha256 or '')[:12]}" if last else "--")
        shown.append(line)
    shown.append(f"^ higher is better, v lower; ± deviation; seed {report.figures[0].seed}; {report.seconds:.0f} s")
    return "\n".join(shown)


def _metrics(text: str | None) -> Any:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METRICS:
            raise RequestError(f"metric {name!r} is unknown; choose from {', '.join(METRICS)}")

    from langevin.evaluation.run import Metric

    return frozenset(Metric(name) for name in names)


def _fields(option: str, pairs: list[str] | None) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise RequestError(f"{option} {pair!r}: write it as FIELD=VALUE, for instance split=test")
        found[name] = (*found.get(name, ()), value)
    return found


def _check_target(path: Path) -> None:
    if path.suffix.lower() != ".json":
        raise RequestError(f"out {str(path)!r} is not a .json file: the report is written as JSON, give FILE.json")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"out {str(path)!r} cannot be written: give a file in a folder that exists")
