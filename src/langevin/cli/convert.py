"""`langevin convert` and `langevin info`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """What to convert to."""

    LDM = "ldm"
    DIFFUSERS = "diffusers"


class Precision(StrEnum):
    """Element types of weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Ema(StrEnum):
    """Which of the U-Net's weights."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


_STORED = {Precision.FLOAT32: "F32", Precision.FLOAT16: "F16", Precision.BFLOAT16: "BF16"}
_LAYERS = {"unet": "U-Net", "text_encoder": "text encoder"}
_PARTS = {"unet": "U-Net", "vae": "autoencoder", "text": "text encoder", "control": "ControlNet", "all": "all"}

AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .ckpt, .pt, .pth and .bin too: only from a source you trust.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command("convert")(convert)
    app.command("info")(info)


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A single file, a diffusers folder or a Hub id.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file or folder to make.")],
    to: Annotated[
        Format, typer.Option("--to", help="ldm: one .safetensors file in the original layout; diffusers: a folder.")
    ],
    dtype: Annotated[
        Precision | None, typer.Option("--dtype", help="New precision of the weights. [default: as stored]")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option("--prediction", help="What the U-Net predicts, if no file says: epsilon, v or x0.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML or JSON file that says what the weights do not.")
    ] = None,
    ema: Annotated[
        Ema, typer.Option("--ema", help="Use the moving average of the U-Net; auto: where the file has one.")
    ] = Ema.AUTO,
    drop_extras: Annotated[
        bool, typer.Option("--drop-extras", help="Leave out what no network uses (tables, unused weights).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it exists.")] = False,
    allow_pickle: AllowPickle = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Convert a model or a ControlNet, and prove it.

    Every tensor is compared with its source, and the networks' answers to fixed inputs; only then DST appears.
    """
    from langevin.checkpoints.convert import convert as run

    done = run(
        source,
        target,
        to.value,
        dtype=None if dtype is None else _STORED[dtype],
        prediction=prediction,
        config=config,
        ema={Ema.AUTO: "auto", Ema.YES: True, Ema.NO: False}[ema],  # type: ignore[arg-type]
        allow_pickle=allow_pickle,
        extras=not drop_extras,
        overwrite=force,
        revision=revision,
    )
    for notice in done.notices:
        typer.echo(f"note: {notice}")
    typer.echo(f"{done.target}: {done.tensors:,} tensors, each equal to its source")
    if done.left_out:
        some = ", ".join(done.left_out[:3]) + (" ..." if len(done.left_out) > 3 else "")
        typer.echo(f"left out: {len(done.left_out):,} tensors that no network uses ({some})")
    if done.prediction is not None:
        same = "equal" if done.difference == 0 else f"equal to within {done.difference:.2g} (new precision)"
        typer.echo(f"answers of the networks: {same}; prediction type: {done.prediction}")


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A weight file or a model folder.")],
    with_hash: Annotated[bool, typer.Option("--hash", help="The SHA-256 too: reads the whole file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Say what a file is: model, ControlNet, LoRA ..., its parts, parameters, precision and prediction type.

    Reads the header alone.
    """
    from langevin.checkpoints.describe import describe

    facts = describe(file, allow_pickle=allow_pickle, with_hash=with_hash)
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{facts['path']}: {facts['what']}")
    for label, text in _lines(facts):
        typer.echo(f"  {label:<12} {text}")


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    parts: dict[str, Any] = facts.get("parts", {})
    lines = [("format", facts["format"])] if "format" in facts else []
    lines.append(("size", f"{facts['bytes']:,} bytes"))
    for part, counts in parts.items():
        text = f"{counts['parameters']:,} parameters in {counts['tensors']:,} tensors, {counts['dtype']}"
        lines.append((_PARTS[part], text))
    if "task" in facts:
        lines.append(("task", f"{facts['task']} ({facts['family']})"))
    if "prediction_from" in facts:
        known = facts["prediction"] or "epsilon or v"
        lines.append(("prediction", f"{known} ({facts['prediction_from']})"))
    if facts.get("size"):
        lines.append(("pixels", "x".join(map(str, facts["size"]))))
    if facts.get("classes"):
        lines.append(("classes", ", ".join(facts["classes"])))
    if facts.get("ema"):
        lines.append(("average", "of the U-Net (EMA), used unless --ema no"))
    if "context" in facts:
        lines.append(("context", f"{facts['context']} channels"))
    if "latents" in facts:
        lines.append(
            ("latents", f"{facts['latents']['channels']} channels, 1/{facts['latents']['factor']} of the size")
        )
    if "adapters" in facts:
        lines.append(
            ("adapters", ", ".join(f"{name} on {count:,} layers" for name, count in facts["adapters"].items()))
        )
        lines.append(("layers", ", ".join(f"{_LAYERS[part]} {count:,}" for part, count in facts["layers"].items())))
        lines.append(("alpha", facts["alpha"]))
    if "ranks" in facts:
        ranks = ", ".join(f"{rank} ({count} layers)" for rank, count in facts["ranks"].items()) or "none found"
        lines.append(("rank", ranks))
    if "vectors" in facts:
        lines.append(("vectors", str(facts["vectors"])))
    if facts.get("for"):
        lines.append(("for", facts["for"]))
    if facts.get("other_tensors"):
        lines.append(("beside", f"{facts['other_tensors']:,} tensors that no network uses"))
    for key in ("unknown_tensors", "unknown_architecture"):
        if key in facts:
            lines.append(("unknown", str(facts[key])))
    if "stated_hash" in facts:
        lines.append(("states hash", facts["stated_hash"]))
    lines += [("sha256", f"{digest}  {path}") for path, digest in facts.get("sha256", {}).items()]
    lines += [("metadata", f"{name} = {value}") for name, value in facts.get("metadata", {}).items()]
    return lines
