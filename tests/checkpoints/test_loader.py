"""Finding a model by what the user types, and what a loaded model knows of itself."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from tests.checkpoints import tiny

from langevin.checkpoints import loader
from langevin.checkpoints.loader import load_bundle, load_controlnet, locate
from langevin.errors import CheckpointError, RequestError


def test_paths_names_and_the_packaged_model(tmp_path: Path, sd1_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(sd1_file).path == sd1_file and locate(sd1_file).revision is None
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(sd1_file, models / "apple v1.safetensors")
    (models / "folder").mkdir()
    (models / "folder" / "model_index.json").write_text("{}")
    monkeypatch.setenv("LANGEVIN_MODELS", f"{tmp_path / 'nowhere'}:{models}")
    apple = models / "apple v1.safetensors"
    assert locate("apple v1") == (apple, "apple v1", str(apple), None)
    assert locate("apple v1.safetensors").name == "apple v1"
    assert locate("folder").path == models / "folder"
    monkeypatch.setenv("HOME", str(models))
    assert locate("~/folder").path == models / "folder"
    for name in ("missing", "../models/missing", "missing.safetensors", "a/b/c.txt", "\0", "x" * 5000):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            locate(name)
    with pytest.raises(CheckpointError, match="revisions belong to Hub ids"):
        locate(sd1_file, revision="main")
    monkeypatch.setattr(loader, "PACKAGED", "missing.safetensors")
    with pytest.raises(CheckpointError, match="the packaged model is not installed"):
        locate(None)


def test_what_a_model_knows_of_itself(sd1_file: Path) -> None:
    info = load_bundle(sd1_file, dtype="bfloat16").info
    assert (info.name, info.source, info.format, info.task) == ("sd1", str(sd1_file), "ldm", "text-to-image")
    assert [file.path for file in info.files] == [sd1_file] and info.revision is None
    assert info.files[0].sha256 == hashlib.sha256(sd1_file.read_bytes()).hexdigest()
    assert info.files[0].size == sd1_file.stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "fp16", "bf16", "float64", torch.bfloat16])
def test_precision_and_device(sd1_file: Path, dtype: str | torch.dtype) -> None:
    bundle = load_bundle(sd1_file, dtype=dtype)
    wanted = loader.as_dtype(dtype)
    for network in bundle.networks().values():
        assert {p.dtype for p in network.parameters()} == {wanted}
    assert bundle.to("cpu") is bundle
    assert bundle.info.stored_dtype == "F16"


def test_bad_options_are_refused(sd1_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="dtype int8: expected one of float32, fp32"):
        load_bundle(sd1_file, dtype="int8")
    with pytest.raises(RequestError, match=r"dtype torch\.int64"):
        load_bundle(sd1_file, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        load_bundle(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_bundle(sd1_file, config=tmp_path / "missing.yaml")
    with pytest.raises(CheckpointError, match="no weights: expected diffusion_pytorch_model"):
        load_controlnet(tmp_path)


def test_loading_costs_no_second_copy(tmp_path: Path) -> None:
    """The weights of one network at a time, tensor by tensor: half a gigabyte would show."""
    path = tiny.save(tmp_path / "m.safetensors", tiny.single_file(dtype=torch.float32))

    def peak() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    bundle = load_bundle(path, dtype="float32")
    rise = peak() - before
    weights = sum(p.numel() * 4 for n in bundle.networks().values() for p in n.parameters())
    # The pages of the mapped file count as well as the networks' own memory.
    assert rise < 2.5 * weights + 2**24
