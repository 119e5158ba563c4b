"""Files that a prompt names: `<lora:NAME:0.8>` as in AUTOMATIC1111's web UI, `embedding:NAME` as in ComfyUI.

They change the model, so they are taken out of the text before anything is planned with it. Names are those of the
folders in $LANGEVIN_MODELS, never paths. Needs no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from langevin.checkpoints import model_folders
from langevin.errors import RequestError
from langevin.tasks.options import show
from langevin.tasks.request import GenerateRequest, ModelOptions

if TYPE_CHECKING:
    from langevin.model.bundle import ModelBundle

R = TypeVar("R", bound=GenerateRequest)

_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
_EMBEDDING = re.compile(r"\bembedding:([^\s,:()\[\]<>|]+)")


@dataclass(frozen=True)
class PromptFiles:
    """What the texts of a request name."""

    loras: tuple[tuple[Path, float], ...] = ()
    """Files and strengths, in order."""
    embeddings: tuple[tuple[Path, str], ...] = ()
    """Files and the words that stand for them in the text now."""

    def added_to(self, options: ModelOptions) -> ModelOptions:
        """Options that name the same files, behind those that they name already."""
        lora = (*options.lora, *(f"{path}:{strength!r}" for path, strength in self.loras))
        embedding = (*options.embedding, *(f"{path}:{word}" for path, word in self.embeddings))
        return options.model_copy(update={"lora": lora, "embedding": embedding})


def take_files(request: R) -> tuple[R, PromptFiles]:
    """The request without the names of files in its texts, and these files. Its embeddings have become words, `<NAME>`.

    Weighting "none" takes texts literally. Raises RequestError for a name that is not there, with the nearest ones,
    for a strength that is no number, and for a LoRA in the negative prompt; CheckpointError for an ambiguous name.
    """
    texts = {"prompt": request.prompt or "", "negative": request.negative}
    if request.weighting == "none" or not any(p.search(t) for p in (_TAG, _EMBEDDING) for t in texts.values()):
        return request, PromptFiles()
    if tag := _TAG.search(texts["negative"]):
        raise RequestError(f"negative holds {show(tag[0])}: a LoRA changes the whole model, name it in the prompt")
    loras = tuple(_loras(texts["prompt"]))
    embeddings: dict[str, tuple[Path, str]] = {}

    def word(match: re.Match[str]) -> str:
        if match[1] not in embeddings:
            path = _find("embedding", match[1])
            embeddings[match[1]] = path, f"<{path.stem}>"
        return embeddings[match[1]][1]

    changed = {name: _EMBEDDING.sub(word, _TAG.sub("", text)).strip() for name, text in texts.items()}
    without = request.changed(**{name: text for name, text in changed.items() if text != texts[name]})
    return without, PromptFiles(loras, tuple(dict.fromkeys(embeddings.values())))


def with_prompt_files(bundle: ModelBundle, request: R) -> tuple[ModelBundle, R]:
    """The model with the files that the request's texts name, and the request without them. A request that names none
    comes back as it is."""
    request, files = take_files(request)
    if not files.loras and not files.embeddings:
        return bundle, request

    from langevin.checkpoints.additions import add_embedding, add_lora

    for path, strength in files.loras:
        bundle = add_lora(bundle, path, strength)
    there = {addition.word for addition in bundle.info.additions}
    for path, word in files.embeddings:
        if word not in there:
            bundle = add_embedding(bundle, path, word)
    return bundle, request


def _loras(text: str) -> Iterator[tuple[Path, float]]:
    for tag in _TAG.finditer(text):
        if tag[1] == "hypernet":
            raise RequestError(f"{show(tag[0])}: hypernetworks are not supported; take it out of the prompt")
        name, *strengths = tag[2].split(":")
        if len(strengths) > 1:
            raise RequestError(f"{show(tag[0])} has {len(strengths)} strengths: give one, <lora:NAME:0.8>")
        try:
            strength = float(strengths[0]) if strengths else 1.0
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise RequestError(f"{show(tag[0])}: {show(strengths[0])} is not a number: write <lora:NAME:0.8>")
        yield _find("lora", name), strength


def _find(kind: model_folders.FileKind, name: str) -> Path:
    found = model_folders.find(kind, name)
    if found is None:
        raise RequestError(f"{show(name)} in the prompt: {model_folders.missing(kind, name)}")
    return found
