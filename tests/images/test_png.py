"""PNG files that carry their manifest."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langevin.errors import DataError
from langevin.images.png import MANIFEST, free_name, pixels_sha256, read_png, write_png

PICTURE = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), "RGB")


def test_picture_manifest_and_parameters_come_back(tmp_path: Path) -> None:
    manifest = {
        "format": 1,
        "prompt": "ein Fuchs, 狐, \U0001f98a",
        "seed": 2**64 - 1,
        "sigmas": [14.614641229333639, 0.0],
    }
    write_png(tmp_path / "a.png", PICTURE, manifest, "狐\nSteps: 1")
    picture, found = read_png(tmp_path / "a.png")
    assert found == manifest and picture.tobytes() == PICTURE.tobytes()
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.info["parameters"] == "狐\nSteps: 1"
        assert str(opened.info[MANIFEST]).isascii()


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_any_text_survives_in_the_manifest(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    write_png(path, PICTURE, {"format": 1, "prompt": text})
    assert read_png(path)[1]["prompt"] == text


def test_the_file_has_the_permissions_of_the_umask_and_no_leftovers(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_png(tmp_path / "a.png", PICTURE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self: Image.Image, file: Any, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_png(path, PICTURE)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]


def test_overwriting_can_be_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PICTURE)
    with pytest.raises(FileExistsError):
        write_png(tmp_path / "a.png", PICTURE, overwrite=False)
    assert free_name(tmp_path / "a.png") == tmp_path / "a-2.png"
    write_png(tmp_path / "a-2.png", PICTURE)
    assert free_name(tmp_path / "a.png") == tmp_path / "a-3.png"


def test_the_hash_is_of_size_and_pixels() -> None:
    data = PICTURE.tobytes()
    assert pixels_sha256(PICTURE) == pixels_sha256(PICTURE.copy())
    assert pixels_sha256(PICTURE) != pixels_sha256(Image.frombytes("RGB", (4, 5), data))
    other = bytearray(data)
    other[7] ^= 1
    assert pixels_sha256(PICTURE) != pixels_sha256(Image.frombytes("RGB", (5, 4), bytes(other)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no manifest"),
        ("not json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": 1, "x": NaN}', "not valid JSON"),
        ("[1]", "another format"),
        (json.dumps({"format": 2}), "another format"),
        ('{"format": 1, "x": "' + "x" * 2**22 + '"}', "at most 4194304 are read"),
    ],
)
def test_other_manifests_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text(MANIFEST, text)
    PICTURE.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(DataError, match=message):
        read_png(tmp_path / "a.png")
