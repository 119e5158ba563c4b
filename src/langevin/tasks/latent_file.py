"""Inverted noise as a file: safetensors, with everything that leads back to the picture as text beside the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import TensorInfo, dtype_name
from langevin.errors import CheckpointError, DataError, RequestError
from langevin.model.bundle import ModelBundle
from langevin.tasks.inversion import Inverted
from langevin.tasks.inversion_request import InvertRequest
from langevin.tasks.manifest import describe
from langevin.version import __version__

KEY = "langevin"
"""Name of the metadata that is a JSON object; `prompt` and `model` stand beside it for other readers."""
FORMAT = 1
_LARGEST = 4096 * 4096
"""Numbers of a state, and of the fitted texts, that are read at most."""


def write_latent(path: str | os.PathLike[str], inverted: Inverted) -> None:
    """Writes the noise, whole or not at all; what is at `path` is replaced. The first call hashes the weight files.

    Tensors: `x`, the state at the first level, in variance-exploding coordinates; `sigmas`, the grid; `contexts`, of
    null-text optimisation.
    """
    tensors = {"x": inverted.x, "sigmas": inverted.sigmas}
    if inverted.contexts is not None:
        tensors["contexts"] = inverted.contexts
    told = {
        "format": FORMAT,
        "program": f"langevin {__version__}",
        "request": inverted.request.model_dump(mode="json"),
        **inverted.describe(),
        **inverted.record,
        "notices": list(inverted.notices),
    }
    metadata = {
        "format": "pt",
        "prompt": inverted.request.prompt or "",
        "model": str(inverted.record["model"]["name"]),
        KEY: json.dumps(told, allow_nan=False),
    }
    write_safetensors(
        path,
        {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()},
        tensors.__getitem__,
        metadata=metadata.items(),
        overwrite=True,
    )


def read_latent(path: str | os.PathLike[str]) -> Inverted:
    """What `write_latent` wrote, checked like any request.

    Raises CheckpointError where the file is no safetensors file, DataError where it is not one of ours or malformed,
    RequestError where an option in it is out of bounds.
    """
    file = SafetensorsFile(path)
    text = file.metadata.get(KEY)
    if text is None or not {"x", "sigmas"} <= file.tensors.keys() <= {"x", "sigmas", "contexts"}:
        raise DataError(f"{path} is not a file of inverted noise: only those that `langevin invert` wrote are read")
    wrong = next((name for name, info in file.tensors.items() if info.elements > _LARGEST), None)
    if wrong is not None:
        raise DataError(f"{path}: {wrong} holds {file.tensors[wrong].elements} numbers: at most {_LARGEST} are read")
    try:
        told = json.loads(text)
        if told["format"] != FORMAT:
            raise DataError(f"{path} has format {str(told['format'])[:20]}: this version reads {FORMAT}")
        request = InvertRequest(**told["request"])
        record = {"inputs": list(told["inputs"]), "model": dict(told["model"])}
        psnr = [float("inf") if told[name] is None else float(told[name]) for name in ("psnr", "autoencoder_psnr")]
        notices = tuple(str(line) for line in told["notices"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise DataError(f"{path}: what it says of itself is malformed ({type(error).__name__}: {error})") from None
    tensors = {name: file.read(name) for name in file.tensors}
    x, sigmas, contexts = tensors["x"], tensors["sigmas"], tensors.get("contexts")
    descending = sigmas.ndim == 1 and len(sigmas) > 1 and bool((sigmas[:-1] > sigmas[1:]).all()) and sigmas[-1] > 0
    fits = (contexts is None) != (request.inversion == "null_text") and (
        contexts is None or (contexts.ndim == 3 and len(contexts) == len(sigmas) - 1)
    )
    if sigmas.dtype != torch.float64 or not descending or x.ndim != 4 or not fits:
        raise DataError(f"{path}: its tensors do not fit what it says of itself: it was changed or damaged")
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise DataError(f"{path} holds NaN or infinity: it was changed or damaged")
    return Inverted(
        request=request,
        x=x.float(),
        sigmas=sigmas,
        contexts=None if contexts is None else contexts.float(),
        psnr=psnr[0],
        autoencoder_psnr=psnr[1],
        notices=notices,
        record=record,
    )


def whereabouts(inverted: Inverted) -> tuple[str | None, str | None]:
    """(model, revision) to load what the noise was found with: None is the model inside the package."""
    source = str(_model(inverted).get("source", ""))
    if source.startswith("package:"):
        return None, None
    if source.startswith("hub:"):
        return source.removeprefix("hub:"), _model(inverted).get("revision")
    return Path(source).name, None  # a file may name a file, not a place


def check_model(inverted: Inverted, bundle: ModelBundle) -> None:
    """Raises CheckpointError unless the model's weights are those that the noise was found with."""

    def hashes(model: Mapping[str, Any]) -> list[str]:
        return sorted(str(file.get("sha256")) for name in ("files", "additions") for file in model.get(name, ()))

    wanted, found = hashes(_model(inverted)), hashes(describe(bundle))
    if wanted != found:
        first = next(iter(set(wanted) - set(found)), "none")
        raise CheckpointError(
            f"{bundle.info.name} is not the model that the noise was found with: no file has SHA-256 {first[:16]}...; "
            "give the right one with --model, its LoRA and embedding files with --lora and --embedding"
        )


def _model(inverted: Inverted) -> Mapping[str, Any]:
    model: Mapping[str, Any] = inverted.record["model"]
    return model
