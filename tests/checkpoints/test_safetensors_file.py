from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import Shards, TensorInfo, dtype_name
from langevin.errors import CheckpointError

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float16).view(2, 3),
    "a": torch.tensor(3, dtype=torch.int32),
    "ü": torch.randn(4, 1, generator=torch.Generator().manual_seed(0)),
    "c": torch.randn(5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "empty": torch.zeros(0, 7),
    "flag": torch.tensor([True, False]),
    "ids": torch.arange(3),
}


def write(path: Path, tensors: dict[str, torch.Tensor], **options: object) -> None:
    infos = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    write_safetensors(path, infos, lambda name: tensors[name], **options)  # type: ignore[arg-type]


def test_our_writer_gives_the_bytes_of_the_library(tmp_path: Path) -> None:
    write(tmp_path / "ours.safetensors", TENSORS, metadata=[("format", "pt")])
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_reading_gives_back_tensors_metadata_and_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    order = sorted(TENSORS)
    write(path, TENSORS, metadata=[("b", "2"), ("a", "1")], order=order)
    file = SafetensorsFile(path)
    assert list(file.tensors) == order
    assert list(file.metadata.items()) == [("b", "2"), ("a", "1")]
    for name, tensor in TENSORS.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        assert file.read(name).dtype == tensor.dtype
        assert torch.equal(file.read(name), tensor)
    assert load_file(path).keys() == TENSORS.keys()


def test_reading_one_tensor_does_not_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    write(path, {"large": torch.zeros(32 * 2**20, dtype=torch.uint8), "small": torch.ones(4)})

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    file = SafetensorsFile(path)
    assert file.read("small").sum() == 4
    assert file.read("large").shape == (32 * 2**20,)
    assert resident() - before < 8 * 2**20


def test_writing_what_was_not_announced_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "x.safetensors", {"a": TensorInfo("F32", (3,))}, lambda _: torch.zeros(4))
    assert os.listdir(tmp_path) == []


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "empty": (b"", "empty file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG picture"),
    "html": (b"<!DOCTYPE html><html><title>404</title>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "git-lfs pointer"),
    "gguf": (b"GGUF" + bytes(100), "GGUF"),
    "zip": (b"PK\x03\x04" + bytes(100), "PyTorch pickle"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "PyTorch pickle"),
    "text": (b"hello, this is no model at all", "no safetensors header"),
    "seven bytes": (b"1234567", "no safetensors header"),
    "huge length": (raw({}, length=2**64 - 1), "no safetensors header"),
    "header past the end": (raw(b'{"a": {"dty', length=9000), "truncated"),
    "half the data": (raw({"a": F32}, bytes(4)), "truncated: .* expected"),
    "trailing": (raw({"a": F32}, bytes(9)), "1 bytes after the last tensor"),
    "not json": (raw(b'{"a": }'), "damaged"),
    "nested": (raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "damaged"),
    "not utf-8": (raw(b'{"\xff": 1}'), "damaged"),
    "array": (raw(b'{"a": [1]}'), "not described"),
    "twice": (
        raw(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
        "'a' stands there twice",
    ),
    "twice inside": (raw(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', bytes(8)), "twice"),
    "hole": (raw({"a": {**F32, "data_offsets": [8, 16]}}, bytes(16)), "begins at byte 8"),
    "overlap": (raw({"a": F32, "b": F32}, bytes(8)), "begins at byte 0"),
    "wrong size": (raw({"a": {**F32, "shape": [3]}}, bytes(8)), "12 bytes has 8"),
    "negative": (raw({"a": {**F32, "shape": [-2]}}, bytes(8)), "shape"),
    "float size": (raw({"a": {**F32, "shape": [2.0]}}, bytes(8)), "shape"),
    "bool size": (raw({"a": {**F32, "shape": [True, 2]}}, bytes(8)), "shape"),
    "overflow": (raw({"a": {**F32, "shape": [2**62, 8]}}, bytes(8)), "bytes has 8"),
    "rank": (raw({"a": {**F32, "shape": [1] * 1000 + [2]}}, bytes(8)), "shape"),
    "dtype": (raw({"a": {**F32, "dtype": "F31"}}, bytes(8)), "unknown type"),
    "metadata": (raw({"__metadata__": {"a": 1}, "a": F32}, bytes(8)), "metadata"),
    "huge int": (raw(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 5000)), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        SafetensorsFile(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(path))


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder; expected a weight file"):
        SafetensorsFile(tmp_path)
    with pytest.raises(CheckpointError, match="not there"):
        SafetensorsFile(tmp_path / "missing.safetensors")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = save({"a": torch.zeros(40), "b": torch.ones(3, 3)})
    path = tmp_path / "x.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


@settings(max_examples=400, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_headers_are_read_or_refused_and_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(save({"a": torch.zeros(4), "b": torch.ones(3, 3).half()}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(whole) - 1))
        replacement = data.draw(st.binary(max_size=4))
        whole[position : position + data.draw(st.integers(0, 4))] = replacement
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole)
    try:
        file = SafetensorsFile(path)
        for name, info in file.tensors.items():
            assert file.read(name).numel() == info.elements
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_shards_are_one_file_and_may_not_overlap(tmp_path: Path) -> None:
    write(tmp_path / "1.safetensors", {"a": torch.ones(1)})
    write(tmp_path / "2.safetensors", {"b": torch.ones(2)})
    files = [SafetensorsFile(tmp_path / f"{i}.safetensors") for i in (1, 2)]
    whole = Shards(files, "model")
    assert list(whole.tensors) == ["a", "b"] and whole.read("b").shape == (2,) and len(whole.paths) == 2
    with pytest.raises(CheckpointError, match="in two shards"):
        Shards([files[0], files[0]], "model")
