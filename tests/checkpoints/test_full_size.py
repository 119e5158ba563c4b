"""Stable Diffusion 1.5 at its true size, random weights: every way round is byte for byte. 2.1 GB a file."""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.checkpoints.sparse import published
from torch import Tensor

from langevin.checkpoints.convert import convert
from langevin.checkpoints.loader import load_bundle, open_checkpoint
from langevin.checkpoints.original import write, write_original
from langevin.checkpoints.safetensors_file import write_safetensors
from langevin.checkpoints.tensorfile import TensorInfo
from langevin.diffusion.schedule import NoiseSchedule

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Removed at once: pytest would keep the gigabytes of its last three runs."""
    path = Path(tempfile.mkdtemp(prefix="langevin-full-size-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """v1-5 in float16 with its float32 tables, as it is published."""
    manifest = published("original")["sd-v1-4_v1-5"]
    tables = {"alphas_cumprod": NoiseSchedule.scaled_linear().abar.float()}
    tensors = {
        name: TensorInfo("F16" if dtype == "F32" and shape != [1000] else dtype, tuple(shape))
        for name, (shape, dtype) in manifest.items()
    }

    def value(name: str) -> Tensor:
        info = tensors[name]
        if info.dtype == "I64":
            return torch.arange(77)[None]
        if info.dtype == "F32":
            return tables.get(name, torch.zeros(info.shape))
        generator = torch.Generator().manual_seed(len(name) + sum(name.encode()))
        scale = 0.5 / max(1, info.elements // info.shape[0]) ** 0.5
        return (scale * torch.randn(info.shape, generator=generator)).half()

    path = folder / "v1-5.safetensors"
    write_safetensors(path, tensors, value, metadata=[("format", "pt")])
    assert path.stat().st_size > 2_100_000_000
    return path


def same(a: Path, b: Path) -> bool:
    return filecmp.cmp(a, b, shallow=False)


def test_from_file_to_file(folder: Path, source: Path) -> None:
    write_original(open_checkpoint(source), folder / "copy.safetensors")
    assert same(source, folder / "copy.safetensors")
    (folder / "copy.safetensors").unlink()


def test_through_memory(folder: Path, source: Path) -> None:
    write(load_bundle(source, dtype="float16"), folder / "memory.safetensors")
    assert same(source, folder / "memory.safetensors")
    (folder / "memory.safetensors").unlink()


def test_from_file_to_folder_and_back(folder: Path, source: Path) -> None:
    assert convert(source, folder / "model", "diffusers").tensors == 1143
    convert(folder / "model", folder / "back.safetensors", "ldm")
    assert same(source, folder / "back.safetensors")
    (folder / "back.safetensors").unlink()
    shutil.rmtree(folder / "model")


def test_from_folder_to_file_and_back(folder: Path, source: Path) -> None:
    first, second, single = folder / "first", folder / "second", folder / "single.safetensors"
    convert(source, first, "diffusers", extras=False)
    convert(first, single, "ldm")
    convert(single, second, "diffusers")
    names = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert names == {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    assert len(names) == 12
    assert [name for name in names if not same(first / name, second / name)] == []
