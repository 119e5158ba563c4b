"""A small captioned data set in WebDataset shards, drawn here."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "orange")
SHAPES = ("circle", "square", "triangle")


def draw(shape: str, colour: str, size: int = 32) -> Image.Image:
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    box = (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(size // 2, size // 4), (size // 4, 3 * size // 4), (3 * size // 4, 3 * size // 4)], fill=colour)
    return picture


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two shards with the fields of the emoji data set, and a label."""
    folder = tmp_path_factory.mktemp("shapes")
    for style in ("flat", "icon"):
        with tarfile.open(folder / f"{style}.tar", "w") as tar:
            for colour in COLOURS:
                for shape in SHAPES:
                    key = f"{style}__{colour}-{shape}"
                    record = {
                        "caption": f"{colour} {shape}",
                        "keywords": [colour, shape, "geometry"],
                        "style": style,
                        "label": SHAPES.index(shape),
                        "split": "val" if (colour, shape) == ("red", "square") else "train",
                        "key": key,
                    }
                    add(tar, f"{key}.png", png(draw(shape, colour)))
                    add(tar, f"{key}.json", json.dumps(record).encode())
    return folder


@pytest.fixture(scope="session")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every recipe can take: captioned pictures with a style, a split and a label, without colours."""
    folder = tmp_path_factory.mktemp("grey")
    with tarfile.open(folder / "grey.tar", "w") as tar:
        for i in range(24):
            shape, shade = SHAPES[i % 3], ("black", "dimgray", "gray", "darkgray")[i % 4]
            record = {"caption": f"{shade} {shape}", "style": "flat", "split": "train", "label": i % 3, "key": str(i)}
            add(tar, f"{i}.png", png(draw(shape, shade)))
            add(tar, f"{i}.json", json.dumps(record).encode())
    return folder
