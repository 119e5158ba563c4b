"""A classifier as one safetensors file: its architecture and what it was trained on stand in the metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from langevin.checkpoints.config import strict
from langevin.checkpoints.places import identity
from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import MemoryTensors
from langevin.checkpoints.transfer import fit, load_into
from langevin.errors import CheckpointError
from langevin.networks.classifier import Classifier, ClassifierConfig

CLASSIFIER_KEY = "langevin.classifier"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ClassifierFacts:
    """What a classifier's file says of it beside the weights."""

    network: ClassifierConfig
    class_names: tuple[str, ...]
    """The caption of each label; empty where a label has several."""
    accuracy: float
    """Share of the held-out pictures that it names right."""
    held_out: int
    """How many those were."""
    data: str
    """Fingerprint of the data set."""


def write_classifier(network: Classifier, facts: ClassifierFacts, path: Path) -> None:
    """Write the file, atomically, replacing what was there."""
    tensors = MemoryTensors({name: value.contiguous() for name, value in network.state_dict().items()})
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(facts)}, separators=(",", ":"), allow_nan=False)
    metadata = [("format", "pt"), (CLASSIFIER_KEY, text)]
    write_safetensors(path, tensors.tensors, tensors.read, metadata=metadata, overwrite=True)


def read_classifier(path: Path, device: torch.device | str = "cpu") -> tuple[Classifier, ClassifierFacts]:
    """The network in float32, ready for use. Raises CheckpointError, in one line, for any other file."""
    file = SafetensorsFile(path)
    facts = _facts(file.metadata, str(path))
    with torch.device("meta"):
        network = Classifier(facts.network)
    part = fit("classifier", network, file, identity(network.state_dict()), file.tensors)
    load_into(network, part, torch.float32, device)
    return network, facts


def _facts(metadata: Mapping[str, str], label: str) -> ClassifierFacts:
    if (text := metadata.get(CLASSIFIER_KEY)) is None:
        raise CheckpointError(
            f"{label}: no classifier: its metadata has no {CLASSIFIER_KEY}; give what "
            "`langevin train classifier-fashion` wrote"
        )
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CheckpointError(f"{label}: {CLASSIFIER_KEY} is not of format {FORMAT}; a newer langevin may read it")
    return strict(ClassifierFacts, data, f"{label}: {CLASSIFIER_KEY}")
