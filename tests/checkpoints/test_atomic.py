from __future__ import annotations

import os
from pathlib import Path

import pytest

from langevin.checkpoints.atomic import atomic_folder, atomic_write


def test_the_file_appears_whole_with_the_umasks_permissions(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    mask = os.umask(0o027)
    try:
        with atomic_write(target) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".bin"
            temporary.write_bytes(b"12")
            os.chmod(temporary, 0o600)
            assert not target.exists()
    finally:
        os.umask(mask)
    assert target.read_bytes() == b"12"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_without_overwriting_an_existing_name_is_refused_early_and_late(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with pytest.raises(FileExistsError), atomic_write(target, overwrite=False) as temporary:
        temporary.write_bytes(b"mine")
        target.write_bytes(b"theirs")
    with pytest.raises(FileExistsError), atomic_write(target, overwrite=False):
        pytest.fail("the block must not run")
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_block_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.bin"):
        pass


@pytest.mark.parametrize("old", [None, "folder", "file"])
def test_a_folder_appears_whole(tmp_path: Path, old: str | None) -> None:
    target = tmp_path / "model"
    if old == "folder":
        target.mkdir()
        (target / "old.txt").write_text("old")
    elif old == "file":
        target.write_text("old")
    with atomic_folder(target, overwrite=old is not None) as temporary:
        (temporary / "unet").mkdir()
        (temporary / "unet" / "new.txt").write_text("new")
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(p.name for p in target.rglob("*")) == ["new.txt", "unet"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(FileExistsError), atomic_folder(target):
        pytest.fail("the block must not run")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new.txt").write_text("new")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(target) == ["old.txt"]
