"""`langevin compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langevin.errors import RequestError

if TYPE_CHECKING:
    from langevin.evaluation.extractors import OpenExtractor

FAMILY_NAMES = ("diffusion", "gan", "pixelcnn", "imagegpt", "latent")


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("compare")(compare)


def compare(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder with the idx files of Fashion-MNIST, both splits.", metavar="FOLDER",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for runs, samples, table and plot; finished families are kept.",
                     metavar="FOLDER"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="M", help="Training time of each family. [default: 5]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Training steps of each stage instead of a time.")
    ] = None,
    families: Annotated[
        str, typer.Option("--families", metavar="NAME,NAME...", help=f"Of {', '.join(FAMILY_NAMES)}.")
    ] = ",".join(FAMILY_NAMES),
    features: Annotated[
        str | None,
        typer.Option("--features", metavar="KIND=PLACE",
                     help="As of evaluate, inception=FILE or classifier=FILE. [default: a classifier, trained first]"),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", help="Pictures that each family makes.")
    ] = 1000,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Pictures made at once.")] = 250,
    likelihood_samples: Annotated[
        int, typer.Option("--likelihood-samples", metavar="N", help="Real pictures for bits per dimension.")
    ] = 32,
    sampler_steps: Annotated[
        int, typer.Option("--sampler-steps", metavar="N", help="Sampler's steps of the diffusion families.")
    ] = 50,
    held_out: Annotated[
        str, typer.Option("--held-out", metavar="SPLIT", help="Split of the data that is compared with.")
    ] = "t10k",
    clock: Annotated[
        str,
        typer.Option(
            "--clock", metavar="wall|cpu", help="Tell time by the wall, or by the processor's time over the threads, "
            "for a machine with other work.",
        ),
    ] = "wall",
    seed: Annotated[
        int, typer.Option("--seed", "-s", min=0, metavar="N", help="Of training; picture i has seed + i.")
    ] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FAMILY.NAME=VALUE", help="Change a field of a family's recipe."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:  # fmt: skip
    """Train families of models at equal compute, on the CPU; one table and one plot of quality, coverage and cost."""
    if data is None or out is None:
        raise RequestError("compare needs --data and --out: langevin compare --data FOLDER --out FOLDER --minutes 5")
    names = [name.strip() for name in families.split(",")]
    for name in names:
        if name not in FAMILY_NAMES or names.count(name) > 1:
            raise RequestError(f"families {name!r}: choose from {', '.join(FAMILY_NAMES)}, each once")
    for text in assignments or ():
        if text.partition(".")[0] not in names:
            raise RequestError(f"--set {text}: begin with one of the compared families, {', '.join(names)}")
    if clock not in ("wall", "cpu"):
        raise RequestError(f"clock {clock!r} is unknown; choose wall or cpu")
    if minutes is None and steps is None:
        minutes = 5.0

    import json

    import torch

    from langevin.baselines.compare import Clock, Settings
    from langevin.baselines.compare import compare as run
    from langevin.baselines.report import notes, plot, table
    from langevin.checkpoints.atomic import atomic_write
    from langevin.training.plots import check_plotting

    if threads:
        torch.set_num_threads(threads)
    settings = Settings(
        minutes=minutes,
        steps=steps,
        samples=samples,
        batch=batch,
        likelihood_samples=likelihood_samples,
        sampler_steps=sampler_steps,
        clock=Clock(clock),
        held_out=held_out,
        seed=seed,
    )
    check_plotting()
    extractor = _extractor(features, data, out)
    results = run(
        names, data, out, settings, extractor, assignments=assignments or (), progress=lambda t: typer.echo(t, err=True)
    )
    text = f"{table(results)}\n\n{notes(results)}\nOn the CPU, {torch.get_num_threads()} threads, {clock} clock.\n"
    with atomic_write(out / "compare.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_write(out / "compare.json") as temporary:
        temporary.write_text(json.dumps([result.to_json() for result in results], indent=1))
    plot(results, out / "compare.png")
    typer.echo(text)
    typer.echo(f"wrote {out / 'compare.md'}, compare.json, compare.png and FAMILY/samples.png")


def _extractor(features: str | None, data: Path, out: Path) -> OpenExtractor:
    """The one that was named, or a classifier that is trained by its recipe in `out/classifier`."""
    from langevin.evaluation.extractors import open_extractor
    from langevin.training.data import read_data
    from langevin.training.recipes import RECIPES

    if features is not None:
        return open_extractor(features)
    run = out / "classifier"
    if not (run / "model.safetensors").is_file():
        system = RECIPES["classifier-fashion"]()
        pictures = read_data(data, system.data)
        typer.echo("training a classifier, whose features measure the pictures", err=True)
        for stage in system.loops:
            for _ in system.train_stage(stage, pictures, run, device="cpu", resume=True):
                pass
        system.finish(pictures, run)
    return open_extractor(f"classifier={run / 'model.safetensors'}")
