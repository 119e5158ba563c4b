"""`langevin merge`, `langevin merge-lora` and `langevin extract-lora`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from langevin.cli.convert import AllowPickle, Ema, Precision
from langevin.errors import RequestError

_EMA = {Ema.AUTO: "auto", Ema.YES: True, Ema.NO: False}
_WORDS = {"unet": "U-Net", "vae": "autoencoder", "text": "text encoder"}
_STORED = {Precision.FLOAT32: "F32", Precision.FLOAT16: "F16", Precision.BFLOAT16: "BF16"}

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to make.")]
Averaged = Annotated[
    Ema, typer.Option("--ema", help="Use the moving average of the U-Net; auto: where a file has one.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command("merge")(merge)
    app.command("merge-lora")(merge_lora)
    app.command("extract-lora")(extract_lora)


def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="A B [C]", help="Models: files, diffusers folders, names or Hub ids.")
    ],
    output: Output,
    how: Annotated[
        str | None,
        typer.Option(
            "--how",
            metavar="weighted-sum|add-difference",
            help="weighted-sum: (1 - ratio) A + ratio B. add-difference: A + ratio (B - C). [default: by their number]",
            show_default=False,
        ),
    ] = None,
    ratio: Annotated[float, typer.Option("--ratio", metavar="X", help="0: all of A; 1: all of B, or of B - C.")] = 0.5,
    parts: Annotated[
        str, typer.Option("--parts", metavar="NAME,NAME...", help="What is merged; the rest is A's.")
    ] = "unet,vae,text",
    ema: Averaged = Ema.AUTO,
    force: Force = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Merge two or three models of one architecture into a file laid out as the first."""
    from langevin.checkpoints.merging import PARTS, How, merge_models

    chosen = _parts(parts, PARTS)
    known = {str(each): each for each in How}
    name = how or (How.WEIGHTED_SUM if len(models) == 2 else How.ADD_DIFFERENCE)
    if name not in known:
        raise RequestError(f"how {name!r} is not known: use {' or '.join(known)}")
    done = merge_models(
        models,
        output,
        how=known[name],
        ratio=ratio,
        parts=chosen,
        ema=_EMA[ema],  # type: ignore[arg-type]
        allow_pickle=allow_pickle,
        overwrite=force,
    )
    _say(done.target, done.tensors, done.notices, "merged")


def merge_lora(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A file, a diffusers folder, a name or a Hub id.")],
    loras: Annotated[
        list[str], typer.Argument(metavar="LORA[:STRENGTH]...", help="Adapter files or names; 1 is as trained.")
    ],
    output: Output,
    ema: Averaged = Ema.AUTO,
    force: Force = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Bake LoRA or LyCORIS files into a model: the new file needs them no longer."""
    from langevin.checkpoints.additions import split_lora
    from langevin.checkpoints.merging import merge_loras

    done = merge_loras(
        model,
        [split_lora(text) for text in loras],
        output,
        ema=_EMA[ema],  # type: ignore[arg-type]
        allow_pickle=allow_pickle,
        overwrite=force,
    )
    _say(done.target, done.tensors, done.notices, "changed")


def extract_lora(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model that learned something.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that it was trained from.")],
    output: Output,
    rank: Annotated[int, typer.Option("--rank", metavar="N", help="Of each layer's adapter; at least 1.")] = 16,
    parts: Annotated[
        str, typer.Option("--parts", metavar="NAME,NAME...", help="Which networks get adapters.")
    ] = "unet,text",
    dtype: Annotated[Precision, typer.Option("--dtype", help="Precision of the file.")] = Precision.FLOAT16,
    ema: Averaged = Ema.AUTO,
    force: Force = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write the difference of two models as a LoRA, and say how much of it is missing."""
    from langevin.checkpoints.extracting import PARTS
    from langevin.checkpoints.extracting import extract_lora as run

    done = run(
        tuned,
        base,
        output,
        rank=rank,
        parts=_parts(parts, PARTS),
        dtype=_STORED[dtype],  # type: ignore[arg-type]
        ema=_EMA[ema],  # type: ignore[arg-type]
        allow_pickle=allow_pickle,
        overwrite=force,
    )
    typer.echo(done.target)
    for part, report in done.parts.items():
        equal = f", {report.unchanged} are equal in both" if report.unchanged else ""
        typer.echo(f"{_WORDS[part]}: {report.layers} layers{equal}; relative error {report.error:.3g}")
        if report.elsewhere:
            typer.echo(f"{_WORDS[part]}: {len(report.elsewhere)} biases and other vectors differ too: not in a LoRA")


def _parts(text: str, known: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise RequestError(f"part {name!r} is not known: use {', '.join(known)}")
    return names


def _say(target: Path, tensors: Mapping[str, int], notices: tuple[str, ...], what: str) -> None:
    for notice in notices:
        typer.echo(f"note: {notice}")
    counts = ", ".join(f"{_WORDS[part]} {count:,}" for part, count in tensors.items())
    typer.echo(f"{target}: tensors {what}: {counts}")
