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
from langevin.training.captions import CaptionConfig, caption
from langevin.training.data import DataConfig, read_data
from langevin.training.randomness import generator


def test_reads_every_sample_in_the_order_of_the_keys(shapes: Path) -> None:
    data = read_data(shapes, DataConfig(size=32))
    assert len(data) == 24
    assert [r["key"] for r in data.records] == sorted(r["key"] for r in data.records)
    first = data.records[0]
    colour, shape = first["caption"].split()
    expected = torch.from_numpy(__import__("numpy").array(draw(shape, colour))).permute(2, 0, 1)
    assert torch.equal(data.pictures[0], expected)
    assert data.images([0]).min() >= -1 and data.images([0]).max() == 1


def test_include_and_exclude_choose_by_field(shapes: Path) -> None:
    data = read_data(shapes, DataConfig(size=32, include={"split": ("train",)}, exclude={"style": ("icon",)}))
    assert {r["style"] for r in data.records} == {"flat"}
    assert "red square" not in {r["caption"] for r in data.records}
    assert len(data) == 11
    with pytest.raises(DataError, match="none of the samples"):
        read_data(shapes, DataConfig(size=32, include={"split": ("nothing",)}))


def test_a_sample_is_seen_as_often_as_is_said(shapes: Path) -> None:
    plain = read_data(shapes, DataConfig(size=32))
    again = read_data(shapes, DataConfig(size=32, repeat={"style": {"icon": 3}, "split": {"train": 2}}))
    times = [(3 if r["style"] == "icon" else 1) * (2 if r["split"] == "train" else 1) for r in plain.records]
    assert [again.keys.count(key) for key in plain.keys] == times and set(times) >= {2, 6}
    for i, record in enumerate(again.records):
        assert torch.equal(again.images([i]), plain.images([plain.keys.index(record["key"])]))
    assert again.fingerprint != plain.fingerprint
    once = read_data(shapes, DataConfig(size=32, repeat={"style": {"icon": 1}}))
    assert once.keys == plain.keys
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DataConfig(repeat={"style": {"icon": 0}})


def test_the_fingerprint_follows_the_pixels(shapes: Path) -> None:
    whole = read_data(shapes, DataConfig(size=32)).fingerprint
    assert whole == read_data(shapes, DataConfig(size=32)).fingerprint
    assert whole != read_data(shapes, DataConfig(size=16)).fingerprint


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
    data = read_data(tmp_path, DataConfig(size=32))
    assert [r["caption"] for r in data.records] == ["red circle"]
    assert not canary.exists()
    text = "\n".join(data.unreadable)
    for name in ("short", "html", "lonely", "broken", "untold"):
        assert sum(name in line for line in data.unreadable) == 1, (name, text)


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", png(clear))
        add(tar, "a.json", json.dumps({"caption": "nothing"}).encode())
    assert (read_data(tmp_path, DataConfig(size=16)).pictures == 255).all()


def test_a_folder_without_data_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing is not a folder: give the one that holds the data set"):
        read_data(tmp_path / "missing", DataConfig())
    with pytest.raises(DataError, match=r"there is no data set in .*: give a folder with tar shards, idx files"):
        read_data(tmp_path, DataConfig())
    (tmp_path / "broken.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(DataError, match=r"broken\.tar is not a readable tar"):
        read_data(tmp_path, DataConfig())


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


PNG = png(Image.new("RGB", (16, 16), (255, 0, 0)))
RECORD = json.dumps({"caption": "red"}).encode()


def test_folders_in_a_shard_are_part_of_the_key(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ("x/1.png", PNG), ("x/1.json", RECORD), ("y/1.png", PNG), ("y/1.json", RECORD))
    assert len(read_data(tmp_path, DataConfig(size=16))) == 2


@pytest.mark.parametrize("second", [("1.png", PNG), ("1.jpg", PNG), ("1.json", RECORD)])
def test_a_key_that_occurs_twice_is_an_error(tmp_path: Path, second: tuple[str, bytes]) -> None:
    shard(tmp_path / "a.tar", ("1.png", PNG), ("1.json", RECORD), second)
    with pytest.raises(DataError, match=r"key '1' occurs twice in a\.tar"):
        read_data(tmp_path, DataConfig(size=16))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": " "}, "no caption"),
        ({"caption": "red", "keywords": "red, blue"}, "keywords is not a list"),
        ({"caption": "red", "keywords": 3}, "keywords is not a list"),
    ],
)
def test_a_set_of_unreadable_samples_says_why(tmp_path: Path, record: dict[str, object], message: str) -> None:
    shard(tmp_path / "a.tar", ("1.png", PNG), ("1.json", json.dumps(record).encode()))
    with pytest.raises(DataError, match=rf"1 could not be read, the first: a\.tar: 1\.json: {message}"):
        read_data(tmp_path, DataConfig(size=16))


def test_keywords_may_be_null(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ("1.png", PNG), ("1.json", json.dumps({"caption": "red", "keywords": None}).encode()))
    (record,) = read_data(tmp_path, DataConfig(size=16)).records
    assert "red" in caption(record, CaptionConfig(keyword_share=1), generator(0, "test"))


def test_a_folder_with_a_shards_name_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(DataError, match=r"a\.tar is not a readable tar file"):
        read_data(tmp_path, DataConfig())
