"""Extractors by name: `inception=FILE`, `clip=FILE-OR-FOLDER`, `classifier=FILE`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from langevin.checkpoints.classifier_file import read_classifier
from langevin.checkpoints.clip_files import ClipModel, load_clip
from langevin.checkpoints.inception_file import load_inception
from langevin.errors import RequestError
from langevin.evaluation.features import ClassifierFeatures, ClipFeatures, Extractor, InceptionFeatures, Views, views

KINDS = ("inception", "clip", "classifier")


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenExtractor:
    """An extractor with what has to stand beside its figures."""

    kind: str
    """One of `KINDS`."""
    extractor: Extractor
    sha256: str
    """Of the weights' file."""
    clip: ClipModel | None = None
    """Both towers, for the CLIP score; of the kind `clip` alone."""
    size: int | None = None
    """Height and width of the only pictures that it takes; None where it resizes them itself."""

    @property
    def name(self) -> str:
        return self.extractor.name

    def views(self, pictures: Tensor, batch: int = 64) -> Views:
        """What the extractor sees in `pictures`, uint8 N 3 H W."""
        return views(self.extractor, (part.float() / 127.5 - 1 for part in pictures.split(batch)))


def open_extractor(
    spec: str,
    *,
    model: Path | None = None,
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
) -> OpenExtractor:
    """The extractor that `spec` names.

    `inception=FILE`: a `pt_inception-2015-12-05` state dict. `classifier=FILE`: what `langevin train
    classifier-fashion` writes. `clip=PLACE`: a `clip.safetensors`, a training run's folder that holds one, or a
    Hugging Face folder; `clip` alone is the `clip.safetensors` beside the file `model`. Raises RequestError for any
    other words, CheckpointError where the file does not fit.
    """
    kind, given, place = spec.partition("=")
    if kind not in KINDS or bool(given) != bool(place) or (not place and kind != "clip"):
        raise RequestError(
            f"features {spec!r} is unknown: write inception=FILE, classifier=FILE, clip=FILE-OR-FOLDER, or clip for "
            "the clip.safetensors beside the model"
        )
    match kind:
        case "inception":
            network = load_inception(Path(place), device, allow_pickle=allow_pickle)
            return OpenExtractor(
                kind=kind,
                extractor=InceptionFeatures(network, "Inception (2015-12-05)"),
                sha256=_sha256(Path(place)),
            )
        case "classifier":
            classifier, facts = read_classifier(Path(place), device)
            name = f"classifier of {facts.network.classes} classes ({facts.accuracy:.1%} of {facts.held_out} right)"
            return OpenExtractor(
                kind=kind,
                extractor=ClassifierFeatures(classifier, name),
                sha256=_sha256(Path(place)),
                size=facts.network.size,
            )
        case _:
            clip = load_clip(_clip_place(place, model), device, allow_pickle=allow_pickle)
            return OpenExtractor(kind=kind, extractor=ClipFeatures.of(clip), sha256=clip.sha256, clip=clip)


def _clip_place(place: str, model: Path | None) -> Path:
    if not place:
        if model is None or not (beside := model.with_name("clip.safetensors")).is_file():
            raise RequestError(
                "features clip: there is no clip.safetensors beside the model: write clip=FILE-OR-FOLDER"
            )
        return beside
    path = Path(place)
    inside = path / "clip.safetensors"
    return inside if inside.is_file() else path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
