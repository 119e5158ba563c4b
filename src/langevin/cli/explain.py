"""`langevin explain`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from langevin.cli.options import command
from langevin.tasks.request import GenerateRequest, ModelOptions

if TYPE_CHECKING:
    from langevin.tasks.explain import ExplainedText, Explanation

Json = Annotated[bool, typer.Option("--json", help="Everything as JSON.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    command(app, explain, "explain", {"request": (GenerateRequest, ("prompt",)), "options": (ModelOptions, ())})


def explain(request: GenerateRequest, options: ModelOptions, json_: Json = False) -> None:
    """Say what generate would do with the same options, without doing it: tokens, noise levels, calls, memory."""
    from langevin.tasks import explain as task

    explanation = task.explain(request, options)
    if json_:
        typer.echo(json.dumps(explanation.to_json(), indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(_lines(explanation)))


def _lines(e: Explanation) -> Iterator[str]:
    request = e.request
    yield f"model       {e.model}, predicts {e.prediction}"
    yield (
        f"picture     {request['width']} x {request['height']}, {len(e.sigmas) - 1} steps of {request['sampler']}, "
        f"guidance {request['guidance']:g}, conventions of {request['compat']}"
    )
    for name, texts in (("prompt", e.prompt), ("negative", e.negative)):
        for text in texts:
            yield from _text(name, text)
    yield ""
    yield f"{'step':>4}  {'sigma':>12}  {'timestep':>9}"
    for i, sigma in enumerate(e.sigmas):
        time = f"{e.timesteps[i]:9.3f}" if i < len(e.timesteps) else f"{'-':>9}"
        yield f"{i:>4}  {sigma:12.6f}  {time}"
    yield f"starts from noise times {e.prior_scale:.6f}"
    yield ""
    yield f"network     {_many(e.network_calls, 'call')}: {_calls(e)}"
    if len(e.calls) != len(e.sigmas) - 1:
        yield "            at sigma " + " ".join(f"{call.sigma:.6g}" for call in e.calls)
    yield f"text        {_many(e.text_calls, 'call')} of the text network"
    yield f"memory      about {_size(e.memory.total)} (an estimate: weights and the largest stage)"
    yield "            weights: " + ", ".join(f"{part} {_size(n)}" for part, n in e.memory.weights.items())
    yield "            stages:  " + ", ".join(f"{part} {_size(n)}" for part, n in e.memory.activations.items())
    for notice in e.notices:
        yield f"notice: {notice}"


def _text(name: str, text: ExplainedText) -> Iterator[str]:
    since = "" if text.from_sigma is None else f" from sigma {text.from_sigma:.6g}"
    count = sum(map(len, text.chunks))
    yield ""
    yield f"{name}{since}: {json.dumps(text.text, ensure_ascii=False)}"
    yield f"  {_many(count, 'token')} in {_many(len(text.chunks), 'chunk')} of {text.room}"
    for i, chunk in enumerate(text.chunks):
        for weight, tokens in groupby(chunk, key=lambda token: token.weight):
            words = " ".join(f"{token.text.removesuffix('</w>')}({token.id})" for token in tokens)
            yield f"  chunk {i + 1}  x {weight:<6.4g} {words}"


def _calls(e: Explanation) -> str:
    groups: Sequence[tuple[int, int]] = [
        (images, len(list(group))) for images, group in groupby(e.calls, key=lambda call: call.images)
    ]
    each = ", then ".join(f"{n} on {_many(images, 'picture')}" for images, n in groups)
    return each if e.batches == 1 else f"{e.batches} times ({each})"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
