"""Text encoders that a model's file names instead of holding them: found again, and checked by their hashes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from langevin.checkpoints import hub
from langevin.checkpoints.config import strict
from langevin.checkpoints.tensorfile import TensorFile
from langevin.errors import CheckpointError
from langevin.model.text_transformers import EncoderKind, EncoderRecord, TransformersEncoder, open_encoder

ENCODER_KEY = "langevin.text_encoder"
"""Metadata of a single file whose text encoder lies elsewhere."""


def encoder_json(record: EncoderRecord) -> str:
    """The text under `ENCODER_KEY`."""
    return json.dumps({**dataclasses.asdict(record), "files": dict(record.files)}, separators=(",", ":"))


def encoder_record(file: TensorFile) -> EncoderRecord | None:
    """What a file says of its text encoder. CheckpointError where that is damaged."""
    if (text := file.metadata.get(ENCODER_KEY)) is None:
        return None
    where = f"{file.label}: {ENCODER_KEY}"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where} is not JSON") from None
    return strict(EncoderRecord, data, where)


def fetch_encoder(source: str, revision: str | None = None) -> tuple[Path, str | None]:
    """(folder, commit) of an encoder: a folder on this machine, else a Hub id. CheckpointError where it is neither."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder, None
    repository = hub.parse(source)
    if repository is None or repository.file is not None:
        raise CheckpointError(f"{source!r}: no such folder, and not a Hub id (owner/name) of a text encoder")
    fetched = hub.fetch(repository, revision=revision, kind="text-encoder")
    return fetched.path, fetched.commit


def encoder_of(
    record: EncoderRecord,
    near: Sequence[Path],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> TransformersEncoder:
    """The encoder that a record names, for a model from one of the files `near`.

    It is looked for where the record says, then under its last name beside the model and in the folders of
    $LANGEVIN_MODELS. CheckpointError where it is not found, or is another than the record's.
    """
    last = Path(record.source).name
    folders = [
        Path(record.source).expanduser(),
        *(path.parent / last for path in near),
        *(Path(root, last) for root in filter(None, os.environ.get("LANGEVIN_MODELS", "").split(os.pathsep))),
    ]
    folder = next((f for f in folders if f.is_dir()), None)
    commit = record.revision
    if folder is None:
        if hub.parse(record.source) is None or record.revision is None:
            raise CheckpointError(
                f"the model's text encoder, {record.kind.name} from {record.source}, is not there: put its folder "
                f"{last!r} beside the model, or into a folder of $LANGEVIN_MODELS"
            )
        folder, commit = fetch_encoder(record.source, record.revision)
    return open_encoder(
        folder,
        EncoderKind(record.kind),
        record.length,
        source=record.source,
        revision=commit,
        expected=record.files,
        dtype=dtype,
        device=device,
    )
