"""A classifier of a labelled data set: an extractor of features that knows the very things the pictures show."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from langevin.checkpoints.atomic import atomic_write
from langevin.checkpoints.classifier_file import ClassifierFacts, write_classifier
from langevin.networks.classifier import Classifier, ClassifierConfig
from langevin.training.checkpointing import load_ema
from langevin.training.config import Config, LoopConfig
from langevin.training.data import PictureSet
from langevin.training.loop import Objective
from langevin.training.objectives.classifier import ClassifierObjective, Split, predict
from langevin.training.system import System


class ClassifierStage(Config):
    network: ClassifierConfig
    held_out: dict[str, tuple[str, ...]]
    """Pictures that are not trained on: those whose record has one of the values in each of these fields."""
    shift: int = Field(2, ge=0, le=16)
    """By how many pixels a picture is moved at most, in each direction."""
    mirror: bool = True
    """Mirror half of the pictures: not for what has a left and a right, as digits."""
    loop: LoopConfig


class ClassifierSystem(System):
    classifier: ClassifierStage

    trial: ClassVar[tuple[str, ...]] = (
        "data.size=16",
        "classifier.network.size=16",
        "classifier.network.widths=[8, 16]",
        "classifier.network.features=8",
        'classifier.held_out={"label": ["0"]}',
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClassifierSystem:
        network = self.classifier.network
        if network.size != self.data.size:
            raise ValueError(f"classifier.network.size {network.size} is not data.size {self.data.size}")
        if self.data.buckets or self.data.flip:
            raise ValueError("data.buckets and data.flip are not for a classifier: it takes squares, see mirror")
        if network.in_channels != 3:
            raise ValueError(f"classifier.network.in_channels {network.in_channels} is not an RGB picture's 3")
        return self

    @property
    def loops(self) -> Mapping[str, LoopConfig]:
        return {"classifier": self.classifier.loop}

    def objective(self, stage: str, data: PictureSet, run: Path, device: str) -> Objective:
        part = self.classifier
        return ClassifierObjective(
            Classifier(part.network),
            data,
            part.held_out,
            seed=self.seed,
            shift=part.shift,
            mirror=part.mirror,
            device=device,
        )

    def finish(self, data: PictureSet, run: Path) -> Path:
        """`run/model.safetensors`: averaged weights in float32 with architecture, classes and held-out accuracy as
        metadata; `run/held-out.json`: the accuracy of each class."""
        network = Classifier(self.classifier.network)
        load_ema(run / "classifier" / "checkpoints", network)
        figures = held_out_accuracy(network, data, self.classifier.held_out)
        facts = ClassifierFacts(
            network=self.classifier.network,
            class_names=class_names(data, self.classifier.network.classes),
            accuracy=figures["accuracy"],
            held_out=figures["held_out"],
            data=data.fingerprint,
        )
        path = run / "model.safetensors"
        write_classifier(network, facts, path)
        with atomic_write(run / "held-out.json") as temporary:
            temporary.write_text(json.dumps({**figures, "network": dataclasses.asdict(facts.network)}, indent=1))
        return path


def held_out_accuracy(network: Classifier, data: PictureSet, held_out: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """`accuracy`, the share of the held-out pictures that are named right; `held_out`, their number; `classes`, the
    share for each label that occurs."""
    split = Split(data, held_out)
    said = predict(network, data, split.test, "cpu").argmax(1)
    labels = split.labels[split.test]
    right = said == labels
    classes = {int(k): float(right[labels == k].double().mean()) for k in torch.unique(labels)}
    return {"accuracy": float(right.double().mean()), "held_out": len(split.test), "classes": classes}


def class_names(data: PictureSet, classes: int) -> tuple[str, ...]:
    """The caption of each label, where each label that occurs has just one; else nothing."""
    names: dict[int, str] = {}
    for record in data.records:
        if names.setdefault(int(record["label"]), str(record["caption"])) != str(record["caption"]):
            return ()
    return tuple(names.get(i, str(i)) for i in range(classes))
