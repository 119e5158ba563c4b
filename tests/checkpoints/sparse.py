"""The published checkpoints as files of their true size that take no space: real headers, holes for numbers."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.checkpoints.tensorfile import TensorInfo, canonical_order

Manifest = Mapping[str, tuple[list[int], str]]

_FOLDER = Path(__file__).parent / "manifests"


@cache
def published(kind: str) -> dict[str, Any]:
    """Keys, shapes and element types of public files ("original", "diffusers"), and their configurations ("configs").

    Made by instantiating the original code and diffusers; the released files may hold more buffers than these.
    """
    with gzip.open(_FOLDER / f"{kind}.json.gz", "rt", encoding="utf-8") as file:
        data: dict[str, Any] = json.load(file)
    return data


def sparse_file(path: Path, manifest: Manifest, values: Mapping[str, Tensor] | None = None) -> Path:
    """A safetensors file of zeros but for `values`."""
    tensors = {name: TensorInfo(dtype, tuple(shape)) for name, (shape, dtype) in manifest.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in canonical_order(tensors):
        info = tensors[name]
        header[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.bytes],
        }
        position += info.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
        for name, value in (values or {}).items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(value.contiguous().view(torch.uint8).numpy().tobytes())
    return path


def original_file(path: Path, name: str) -> Path:
    """One of the published single files, with its true noise schedule."""
    manifest = published("original")[name]
    low, high = (1e-4, 0.02) if name.startswith("x4") else (0.00085, 0.012)
    betas = torch.linspace(low**0.5, high**0.5, 1000, dtype=torch.float64) ** 2
    tables = {"alphas_cumprod": torch.cumprod(1 - betas, 0).float()}
    return sparse_file(path, manifest, {k: v for k, v in tables.items() if k in manifest})


def diffusers_model(folder: Path, repository: str, *, names_of_2022: bool, position_ids: bool = True) -> Path:
    """One of the published folders; the tokenizer is the standard one."""
    manifests, configs = published("diffusers"), published("configs")[repository]
    for name, data in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data, indent=2) + "\n")
    sparse_file(folder / "unet" / "diffusion_pytorch_model.safetensors", manifests[f"{repository}.unet"])
    vae = f"{repository}.vae_deprecated_names" if names_of_2022 else f"{repository}.vae"
    sparse_file(folder / "vae" / "diffusion_pytorch_model.safetensors", manifests[vae])
    text = {
        name: entry
        for name, entry in manifests[f"{repository}.text_encoder"].items()
        if position_ids or not name.endswith("position_ids")
    }
    sparse_file(folder / "text_encoder" / "model.safetensors", text)
    return folder
