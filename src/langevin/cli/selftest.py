"""`langevin selftest`."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from langevin.evaluation.selftest import Row, SelftestReport


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("selftest")(selftest)


def selftest(
    samplers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SAMPLER]...", help="Test these only. [default: all, and every prediction type]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.", show_default=False)] = False,
) -> None:
    """Measure every sampler on data whose answer is known in closed form.

    Orders of convergence, final errors, variances at every step and whole distributions. Exit code 1 where one is out
    of its bounds.
    """
    import torch

    from langevin.evaluation.selftest import run_selftest

    torch.set_num_threads(1)  # The tensors are small: threads would only wait for each other.
    if as_json:
        report = run_selftest(samplers or None)
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("selftest") as status:
            report = run_selftest(samplers or None, progress=lambda name: status.update(f"selftest: {name}"))
        show(report)
    if not report.passed:
        raise typer.Exit(1)


def show(report: SelftestReport) -> None:
    """A table of every number, and a summary."""
    from rich.console import Console
    from rich.table import Table

    table = Table("sampler", "problem", "quantity", box=None, pad_edge=False)
    table.add_column("measured", justify="right")
    table.add_column("wanted")
    table.add_column("")
    for (subject, check), rows in groupby(report.rows, key=lambda row: (row.subject, row.check)):
        for i, row in enumerate(rows):
            table.add_row(
                "" if i else subject,
                "" if i else check,
                row.quantity,
                f"{row.measured:.3g}",
                _wanted(row),
                "ok" if row.passed else "FAILED",
                style=None if row.passed else "red",
            )
    console = Console()
    console.print(table)
    failures = len(report.failures)
    console.print(
        f"{len(report.rows)} numbers in {report.seconds:.1f} s: "
        + (f"{failures} out of bounds" if failures else "all within their bounds"),
        style="red" if failures else None,
        highlight=False,
    )


def _wanted(row: Row) -> str:
    if row.low == row.high:
        return f"{row.low:g}"
    return f"<= {row.high:.3g}" if row.low == 0 else f"{row.low:.3g} ... {row.high:.3g}"
