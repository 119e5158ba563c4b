from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.training.conftest import add, draw, png

from langevin.errors import DataError
from langevin.training.data import DataConfig, read_shards


def test_reads_every_sample_in_the_order_of_the_keys(shapes: Path) -> None:
    data = read_shards(shapes, DataConfig(size=32))
    assert len(data) == 24
    assert [r["key"] for r in data.records] == sorted(r["key"] for r in data.records)
    first = data.records[0]
    colour, shape = first["caption"].split()
    expected = torch.from_numpy(__import__("numpy").array(draw(shape, colour))).permute(2, 0, 1)
    assert torch.equal(data.pictures[0], expected)
    assert data.images([0]).min() >= -1 and data.images([0]).max() == 1


def test_include_and_exclude_choose_by_field(shapes: Path) -> None:
    data = read_shards(shapes, DataConfig(size=32, include={"split": ("train",)}, exclude={"style": ("icon",)}))
    assert {r["style"] for r in data.records} == {"flat"}
    assert "red square" not in {r["caption"] for r in data.records}
    assert len(data) == 11
    with pytest.raises(DataError, match="none of the samples"):
        read_shards(shapes, DataConfig(size=32, include={"split": ("nothing",)}))


def test_the_fingerprint_follows_the_pixels(shapes: Path) -> None:
    whole = read_shards(shapes, DataConfig(size=32)).fingerprint
    assert whole == read_shards(shapes, DataConfig(size=32)).fingerprint
    assert whole != read_shards(shapes, DataConfig(size=16)).fingerprint


def test_bad_members_are_named_with_the_reason_and_nothing_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {canary}",)

    good = png(draw("circle", "red"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.png", good)
        add(tar, "good.json", json.dumps({"caption": "red circle"}).encode())
        add(tar, "good.pkl", pickle.dumps(Bomb()))
        add(tar, "good.pyd", pickle.dumps(Bomb()))
        add(tar, "short.png", good[:60])
        add(tar, "short.json", json.dumps({"caption": "cut off"}).encode())
        add(tar, "html.png", b"<html>404</html>")
        add(tar, "html.json", json.dumps({"caption": "not a picture"}).encode())
        add(tar, "lonely.png", good)
        add(tar, "broken.json", b"{")
        add(tar, "untold.png", good)
        add(tar, "untold.json", b"{}")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    data = read_shards(tmp_path, DataConfig(size=32))
    assert [r["caption"] for r in data.records] == ["red circle"]
    assert not canary.exists()
    text = "\n".join(data.unreadable)
    for name in ("short", "html", "lonely", "broken", "untold"):
        assert sum(name in line for line in data.unreadable) >= 1, (name, text)


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", png(clear))
        add(tar, "a.json", json.dumps({"caption": "nothing"}).encode())
    assert (read_shards(tmp_path, DataConfig(size=16)).pictures == 255).all()


def test_a_folder_without_shards_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.tar shard found in"):
        read_shards(tmp_path / "missing", DataConfig())
    (tmp_path / "broken.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(DataError, match=r"broken\.tar is not a readable tar"):
        read_shards(tmp_path, DataConfig())
