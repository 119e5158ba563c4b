"""Colours that are measured for captions, and scenes beside a data set's pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from langevin.errors import DataError
from langevin.training.captions import CaptionConfig, caption
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.data.config import ColourConfig, SceneConfig
from langevin.training.data.shapes import make_scene
from langevin.training.randomness import generator

PICTURES = (
    ("car", "train", "#dd2e44"), ("boat", "train", "#55acee"), ("heart", "train", "#55acee"),
    ("blue heart", "val", "#55acee"), ("waffle", "val", "#c1694f"), ("apple", "train", "#dd2e44"),
    ("red apple", "train", "#dd2e44"), ("Light bulb", "train", "#fdcb58"), ("nib", "train", "#111111"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour on white, with a smaller one of green in the corner."""
    folder = tmp_path_factory.mktemp("painted")
    lines = []
    for name, split, paint in PICTURES:
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste(paint, (4, 4, 28, 28))
        picture.paste("#78b159", (4, 4, 14, 14))
        picture.save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "caption": name, "split": split, "style": "flat"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def read(folder: Path, **options: object) -> PictureSet:
    return read_data(folder, DataConfig(size=32, **options))  # type: ignore[arg-type]


def colours(data: PictureSet) -> dict[str, str]:
    return {r["caption"]: r["colour"] for r in data.records if "colour" in r}


def said(data: PictureSet, config: CaptionConfig) -> set[str]:
    return {
        caption(record, config, generator(0, "test", i, k)) for i, record in enumerate(data.records) for k in range(40)
    }


def test_a_colour_is_named_where_it_covers_enough_and_nothing_else_is_called_so(folder: Path) -> None:
    data = read(folder, include={"split": ("train",)}, colours=ColourConfig())
    assert colours(data) == {"car": "red", "boat": "blue"}
    assert not colours(read(folder, colours=ColourConfig(least=0.9)))
    assert not colours(read(folder))


def test_held_out_concepts_are_neither_said_nor_changed(folder: Path) -> None:
    config = CaptionConfig(colour_share=0.5, article_share=0.5)
    train = read(folder, include={"split": ("train",)}, colours=ColourConfig())
    texts = said(train, config)
    assert {"a red car", "red car", "a car", "car", "blue boat"} <= texts
    assert not [text for text in texts if "blue heart" in text or "waffle" in text]
    held_out = {"split": ("val",)}
    assert read(folder, include=held_out, colours=ColourConfig()).records == read(folder, include=held_out).records
    assert "brown waffle" not in said(read(folder, colours=ColourConfig()), config)
    assert colours(read(folder, colours=ColourConfig(exclude={})))["waffle"] == "brown"


def test_without_a_share_captions_are_what_they_were(folder: Path) -> None:
    plain, measured = read(folder), read(folder, colours=ColourConfig())
    config = CaptionConfig(styles={"flat": ("flat",)})
    for i, (a, b) in enumerate(zip(plain.records, measured.records, strict=True)):
        assert caption(a, config, generator(0, i)) == caption(b, config, generator(0, i))
    assert plain.fingerprint != measured.fingerprint


def test_articles_fit_the_colour() -> None:
    record = {"caption": "car", "colour": "orange"}
    config = CaptionConfig(colour_share=1, article_share=1)
    assert caption(record, config, generator(0)) == "an orange car"


def test_scenes_are_the_share_that_was_asked_for_and_keep_their_captions(folder: Path) -> None:
    data = read(folder, scenes=SceneConfig(share=0.4, seed=3), include={"split": ("train",)}, colours=ColourConfig())
    scenes = [r for r in data.records if r.get("style") == "shapes"]
    assert len(scenes) == 5 and len(data) == 12 and not any("colour" in r for r in scenes)
    assert [r["caption"] for r in scenes] == [make_scene(3, i)[0].caption for i in range(5)]
    config = CaptionConfig(article_share=1, colour_share=1, keyword_share=1)
    for i, record in enumerate(scenes):
        assert caption(record, config, generator(0, i)) == record["caption"]
    assert torch.equal(
        data.pictures, read(folder, scenes=SceneConfig(share=0.4, seed=3), include={"split": ("train",)}).pictures
    )
    assert data.only({"style": ("flat",)}).pictures.shape[0] == 7


def test_bounds_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        SceneConfig(share=1)
    with pytest.raises(ValueError, match="greater than 0"):
        ColourConfig(least=0)
    with pytest.raises(DataError, match="none of the samples"):
        read(folder, include={"split": ("nothing",)}, scenes=SceneConfig(share=0.1))
