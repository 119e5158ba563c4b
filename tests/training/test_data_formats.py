"""Each format of a data set, what is refused, and members that mean harm."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.conftest import add, draw, png
from tests.training.test_text_to_image import no_stage, train

from langevin.errors import DataError
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.data.fitting import Fit, fit_to

PNG = png(Image.new("RGB", (16, 16), (255, 0, 0)))
SIZE16 = DataConfig(size=16)


def put(folder: Path, **files: bytes) -> Path:
    """Files by their names, with `__` for `/` and the last `_` for the dot."""
    for name, data in files.items():
        path = folder / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def captions(data: PictureSet) -> list[str]:
    return [record["caption"] for record in data.records]


def unkeyed(data: PictureSet) -> list[dict[str, object]]:
    """The records without their keys, which name the files."""
    assert len({record["key"] for record in data.records}) == len(data)
    return [{name: value for name, value in record.items() if name != "key"} for record in data.records]


def rows(*values: object) -> bytes:
    return "\n".join(v if isinstance(v, str) else json.dumps(v) for v in values).encode()


def idx(values: np.ndarray) -> bytes:
    shape = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return bytes((0, 0, 8, values.ndim)) + shape + values.astype(np.uint8).tobytes()


def mnist(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> Path:
    (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
    (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def test_shards_take_captions_and_labels_from_txt_and_cls(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in [
            ("a.png", PNG), ("a.txt", b"a red\nsquare "), ("a.cls", b"3\n"),
            ("b.png", PNG), ("b.cls", b"7"),
            ("c.png", PNG), ("c.json", b'{"caption": "said", "label": 1, "by": "me"}'),
            ("c.txt", b"x"), ("c.cls", b"2"),
            ("d.png", PNG), ("d.json", b'{"by": "me"}'), ("d.txt", b"beside"),
            ("e.png", PNG), ("e.cls", b"-1"),
            ("f.png", PNG), ("f.txt", b"\xff\xfe"),
            ("g.png", PNG), ("g.txt", b" \n"),
        ]:  # fmt: skip
            add(tar, name, data)
    data = read_data(tmp_path, SIZE16)
    assert unkeyed(data) == [
        {"caption": "a red square", "label": 3},
        {"caption": "7", "label": 7},
        {"caption": "said", "label": 1, "by": "me"},
        {"caption": "beside", "by": "me"},
    ]
    assert [line.split(":")[1].strip() for line in data.unreadable] == ["e.cls", "f.txt", "g.txt"]
    assert captions(read_data(tmp_path, DataConfig(size=16, include={"label": ("3",)}))) == ["a red square"]


def test_pictures_with_captions_beside_them(tmp_path: Path) -> None:
    put(tmp_path, b_png=PNG, b_txt=b"\xef\xbb\xbfa  red\nthing", sub__a_webp=PNG, sub__a_txt="ein Öl".encode())
    put(tmp_path, alone_jpg=PNG, short_png=PNG[:40], short_txt=b"cut off", readme_txt=b"not a caption")
    (tmp_path / ".hidden.png").write_bytes(PNG)
    data = read_data(tmp_path, SIZE16)
    assert captions(data) == ["a red thing", "ein Öl"]
    assert data.unreadable[0] == "alone.jpg: a picture without a caption: alone.txt is not there"
    assert data.unreadable[1].startswith("short.png: the picture ") and len(data.unreadable) == 2
    assert data.fingerprint == read_data(tmp_path, SIZE16).fingerprint


def test_metadata_names_pictures_and_gives_their_fields(tmp_path: Path) -> None:
    put(tmp_path, a_png=PNG, sub__b_png=PNG, c_png=PNG, other_png=PNG)
    put(
        tmp_path,
        metadata_jsonl=rows(
            {"file_name": "c.png", "text": "third", "label": 2},
            {"file_name": "a.png", "caption": "first", "text": "kept", "style": "flat"},
            "",
            {"file_name": "./sub/b.png", "text": "second"},
            {"file_name": "gone.png", "text": "missing"},
            {"file_name": "../x.png", "text": "above"},
            {"file_name": "/etc/passwd", "text": "elsewhere"},
            {"text": "nameless"},
            "[" * 100_000,
            {"file_name": "other.png"},
        ),
    )
    data = read_data(tmp_path, SIZE16)
    assert unkeyed(data) == [
        {"caption": "first", "text": "kept", "style": "flat"},
        {"caption": "third", "label": 2},
        {"caption": "second"},
    ]
    assert [line.split(": ")[0] for line in data.unreadable] == [
        "gone.png", *(f"metadata.jsonl, line {n}" for n in (6, 7, 8, 9, 10))
    ]  # fmt: skip
    assert sum("leads out of" in line for line in data.unreadable) == 2
    put(tmp_path, metadata_jsonl=rows({"file_name": "a.png", "text": "x"}, {"file_name": "./a.png", "text": "y"}))
    with pytest.raises(DataError, match=r"metadata.jsonl, line 2: 'a.png' is named for the second time"):
        read_data(tmp_path, SIZE16)


def test_class_folders_are_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    put(tmp_path, dog__1_png=PNG, cat__1_png=PNG, cat__more__2_png=PNG, owl__1_png=b"?", empty__notes_md=b"")
    data = read_data(tmp_path, SIZE16)
    assert [(r["caption"], r["label"]) for r in data.records] == [("cat", 0), ("cat", 0), ("dog", 1)]
    assert len(data.unreadable) == 1 and data.unreadable[0].startswith("owl/1.png: ")
    only = read_data(tmp_path, DataConfig(size=16, exclude={"caption": ("cat", "owl")}))
    assert unkeyed(only) == [{"caption": "dog", "label": 1}] and not only.unreadable


def test_idx_files_plain_and_compressed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    mnist(tmp_path, images, np.array([4, 0, 1, 1, 9]))
    mnist(tmp_path, images[:2], np.array([2, 3]), split="t10k")
    data = read_data(tmp_path, DataConfig(size=28, include={"split": ("train",)}))
    assert torch.equal(data.pictures, torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1))
    assert unkeyed(data)[0] == {"caption": "4", "label": 4, "split": "train"}
    assert len(read_data(tmp_path, DataConfig(size=28))) == 7
    (tmp_path / "labels.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n")
    assert captions(read_data(tmp_path, DataConfig(size=28)))[-1] == "class 9"
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"labels.txt names 2 classes, the labels of t10k-images-idx3-ubyte go up to 3"):
        read_data(tmp_path, DataConfig(size=28))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "1 to 1073741824 are read"),
        (bytes((0, 0, 8, 3)) + b"\0\0\0\1" + b"\0\1\0\0" * 2, "1 to 1073741824 are read"),
        (bytes((0, 0, 8, 3)) + b"\0" * 12, "says it holds 0 x 0 x 0 values"),
        (bytes((0, 0, 8, 3)) + b"\0\0\0\1" + b"\0\0\x20\0" * 2 + b"x", "holds 1 values, its header says 67108864"),
        (idx(np.zeros((2, 4, 4))) + b"x", "holds more values, its header says 32"),
        (bytes((0, 0, 13, 3)) + b"\0" * 12, "not an idx file of unsigned bytes with 3 axes: it begins 00000d03"),
        (b"", "not an idx file"),
        (idx(np.zeros((3, 4, 4))), "holds 3 images, its labels are 2"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_headers_are_not_believed(tmp_path: Path, images: bytes, message: str, packed: bool) -> None:
    mnist(tmp_path, np.zeros((2, 4, 4)), np.array([0, 1]))
    path = tmp_path / "train-images-idx3-ubyte"
    if packed:
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
        images = gzip.compress(images)
    path.write_bytes(images)
    with pytest.raises(DataError, match=message):
        read_data(tmp_path, SIZE16)


def test_idx_files_that_do_not_go_together(tmp_path: Path) -> None:
    mnist(tmp_path, np.zeros((2, 4, 4)), np.array([0, 1]))
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(idx(np.zeros((2, 4, 4))))[:-9])
    with pytest.raises(DataError, match="holds train-images twice"):
        read_data(tmp_path, SIZE16)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"ubyte.gz cannot be read: Compressed file ended"):
        read_data(tmp_path, SIZE16)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="has no labels beside it: train-labels-idx1-ubyte or"):
        read_data(tmp_path, SIZE16)


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path, a_png=PNG)
    with pytest.raises(DataError, match=r"have no captions: write a\.txt beside a\.png, or a metadata\.jsonl"):
        read_data(tmp_path, SIZE16)
    put(tmp_path, a_txt=b"red", metadata_jsonl=rows({"file_name": "a.png", "text": "red"}))
    with pytest.raises(DataError, match=r"holds metadata\.jsonl and pictures with \.txt captions: keep one of them"):
        read_data(tmp_path, SIZE16)
    (tmp_path / "metadata.jsonl").unlink()
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"holds tar shards and pictures with \.txt captions: keep one"):
        read_data(tmp_path, SIZE16)


def test_links_and_pipes_are_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", secret_png=PNG, secret_txt=b"secret", deep__x_png=PNG, deep__x_txt=b"x")
    data = put(tmp_path / "data", a_png=PNG, a_txt=b"fine", b_png=PNG, e_png=PNG, f_txt=b"pipe")
    (data / "b.txt").symlink_to(outside / "secret.txt")
    (data / "c.png").symlink_to(outside / "secret.png")
    put(data, c_txt=b"not my picture")
    (data / "d.png").symlink_to("a.png")
    put(data, d_txt=b"a link within")
    (data / "e.txt").symlink_to("e.txt")
    os.mkfifo(data / "f.png")
    (data / "deep").symlink_to(outside / "deep")
    found = read_data(data, SIZE16)
    assert captions(found) == ["fine", "a link within"]
    assert [line.split(": ")[0] for line in found.unreadable] == ["deep", "b.txt", "c.png", "e.txt", "f.png"]
    assert sum("leads out of the data set's folder" in line for line in found.unreadable) == 2


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    put(tmp_path, a_png=PNG, a_txt=b"fine")
    (tmp_path / "b\x1b[2J\n.png").write_bytes(PNG)
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(PNG)
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"no text can spell its name")
    data = read_data(tmp_path, SIZE16)
    assert len(data) == 2 and data.unreadable[0].startswith(r"b\x1b[2J\n.png: a picture without a caption")
    "".join(data.unreadable).encode()


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind
    )
    block += b"\0" * (512 - len(block))
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        pytest.param(header(b"a.png", b"\xff" * 11 + b"\x00"), "not a readable tar file", id="negative size"),
        pytest.param(header(b"a.png", b"77777777777\0"), "unexpected end of data", id="eight gigabytes"),
        pytest.param(header(b"a.png", b"\x80" + b"\x7f" * 11), "tar file|bytes, more than", id="beyond 64 bits"),
        pytest.param(header(b"x", b"77777777777\0", b"x"), "not a readable tar file|no data|none of", id="huge pax"),
        pytest.param(header(b"L", b"00000000001\0", b"L") * 3000, "not a readable tar file", id="nested long names"),
    ],
)
def test_tar_headers_are_not_believed(tmp_path: Path, members: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(members + b"\0" * 1024)
    with pytest.raises(DataError, match=message):
        read_data(tmp_path, SIZE16)


def test_a_member_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """65 MiB of nothing: a hole in the file."""
    (tmp_path / "a.tar").write_bytes(header(b"a.png", b"%011o\0" % (65 * 2**20)))
    os.truncate(tmp_path / "a.tar", 512 + 65 * 2**20 + 1024)
    with pytest.raises(
        DataError, match=r"1 could not be read, the first: a.tar: a.png: 68157440 bytes, more than 6710"
    ):
        read_data(tmp_path, SIZE16)


def test_members_of_a_shard_write_nothing_and_read_nothing_outside(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(data / "a.tar", "w") as tar:
        add(tar, "../../up.png", PNG)
        add(tar, "../../up.txt", b"only a name")
        add(tar, "b.png", PNG)
        for kind, name in ((tarfile.SYMTYPE, "b.txt"), (tarfile.LNKTYPE, "b.json"), (tarfile.FIFOTYPE, "b.cls")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    found = read_data(data, SIZE16)
    assert captions(found) == ["only a name"] and list(found.unreadable) == ["a.tar: b: a picture without a record"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("width", "height"), [(12, 8), (8, 12), (31, 17), (16, 16), (1, 4000), (32, 16)])
def test_every_fit_gives_the_stated_pixels(width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
    lanczos, box = Image.Resampling.LANCZOS, Image.Resampling.BOX

    def resized(picture: Image.Image, w: int, h: int) -> Image.Image:
        even = picture.width % w == 0 and picture.height % h == 0
        return picture if picture.size == (w, h) else picture.resize((w, h), box if even else lanczos)

    assert fit_to(image, 8, 8, Fit.STRETCH).tobytes() == resized(image, 8, 8).tobytes()
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    assert fit_to(image, 8, 8, Fit.CROP).tobytes() == resized(square, 8, 8).tobytes()
    padded = np.asarray(fit_to(image, 8, 8, Fit.PAD))
    inner = {(12, 8): (8, 5), (8, 12): (5, 8), (31, 17): (8, 4), (16, 16): (8, 8), (1, 4000): (1, 8), (32, 16): (8, 4)}
    w, h = inner[width, height]
    x, y = (8 - w) // 2, (8 - h) // 2
    assert np.array_equal(padded[y : y + h, x : x + w], np.asarray(resized(image, w, h)))
    outside = np.ones((8, 8), bool)
    outside[y : y + h, x : x + w] = False
    assert (padded[outside] == 255).all()


def test_the_fit_is_the_configurations(tmp_path: Path) -> None:
    put(tmp_path, a_png=png(Image.new("RGB", (32, 16), (255, 0, 0))), a_txt=b"red")
    white = {f: int((read_data(tmp_path, DataConfig(size=16, fit=f)).pictures[0, 1] == 255).sum()) for f in Fit}
    assert white == {Fit.STRETCH: 0, Fit.CROP: 0, Fit.PAD: 128}
    assert DataConfig().fit is Fit.STRETCH


def test_strict_stops_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from langevin.training.system import System

    monkeypatch.setattr(System, "train_stage", no_stage)
    data = put(tmp_path / "data", a_png=png(draw("circle", "red")), a_txt=b"fine", b_png=b"?", b_txt=b"broken")
    assert train(data, tmp_path / "run", "--set", "data.include={}", "--strict") == 2
    said = capsys.readouterr().err
    assert said.count("unreadable: b.png: ") == 1
    assert "1 of the data set's files cannot be read, see above" in said
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(AssertionError, match="training began"):
        train(data, tmp_path / "run", "--set", "data.include={}")
