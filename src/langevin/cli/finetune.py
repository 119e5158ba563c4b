"""`langevin finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from langevin.errors import RequestError


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command("finetune")(finetune)


def finetune(
    method: Annotated[
        str,
        typer.Argument(
            help="full, lora, dreambooth, textual-inversion, controlnet or distill.",
            metavar="METHOD",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Folder with the data set; docs/data.md shows the formats.", metavar="FOLDER")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Run folder: checkpoints, curves, samples, the finished file.", metavar="FOLDER"),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Weights: a file, a diffusers folder, a name in $LANGEVIN_MODELS or a Hub id. "
            "[default: the model inside the package]",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            help="What is said of each picture; {caption} is its own caption, {word} the new word.",
            metavar="TEXT",
        ),
    ] = None,
    class_prompt: Annotated[
        str | None,
        typer.Option("--class-prompt", help="dreambooth: the prompt without the subject's name.", metavar="TEXT"),
    ] = None,
    word: Annotated[
        str | None, typer.Option("--word", help="textual-inversion: the new word, as <style>.", metavar="TEXT")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="textual-inversion: words that the new one begins as.", metavar="TEXT"),
    ] = None,
    all_weights: Annotated[
        bool, typer.Option("--all-weights", help="dreambooth, distill: train the whole U-Net, not a LoRA.")
    ] = False,
    hint: Annotated[
        str | None,
        typer.Option(
            "--hint",
            help="controlnet: what makes each picture's hint (canny, blur, colour-grid, line-art, segments), or a "
            "folder with a hint for each. [default: canny]",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's newest checkpoint.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the configuration.", metavar="NAME=VALUE")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop before the first step if a file of the data cannot be read.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
    ] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:
    """Train a loaded model further (all of it, a LoRA, a subject, a new word, for fewer steps), or a ControlNet."""
    import torch

    from langevin.training.config import override
    from langevin.training.finetuning.config import ModelSource
    from langevin.training.finetuning.methods import Method, fine_tuning
    from langevin.training.run import run_recipe

    if method not in get_args(Method):
        raise RequestError(f"method {method!r} is unknown; choose one of {', '.join(get_args(Method))}")
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = list(assignments or ())
    # How the model is opened has to be known before its own values can be.
    source = override(ModelSource(path=model), [s.removeprefix("model.") for s in settings if s.startswith("model.")])
    config = fine_tuning(
        method,  # type: ignore[arg-type]  # one of its arguments, as was checked
        source,
        prompt=prompt,
        class_prompt=class_prompt,
        word=word,
        start=start,
        all_weights=all_weights,
        hint=hint,
    )
    config = override(config, settings)
    run_recipe(
        f"finetune {method}", config, data, out, stages=list(config.loops), device=device, resume=resume, strict=strict
    )
