"""Aspect-ratio buckets, mirrored views and several captions, from the file to the step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.training.conftest import png

from langevin.checkpoints.loader import load_bundle
from langevin.cli.main import run as langevin
from langevin.errors import DataError, RequestError
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.training.caching import CacheConfig
from langevin.training.captions import CaptionConfig, caption
from langevin.training.config import override
from langevin.training.data import BucketConfig, DataConfig, PictureSet, read_data
from langevin.training.data.buckets import bucket_sizes, nearest_bucket
from langevin.training.data.fitting import Fit, fit_to
from langevin.training.data.order import BucketOrder
from langevin.training.objectives.latents import Latents
from langevin.training.randomness import generator
from langevin.training.recipes import RECIPES

GRIDS = st.tuples(st.sampled_from([1, 4, 8, 16, 64]), st.integers(1, 16), st.floats(1, 8))


@settings(max_examples=80, deadline=None)
@given(GRIDS)
def test_no_bucket_is_larger_than_the_square_or_much_smaller(case: tuple[int, int, float]) -> None:
    grid, cells, ratio = case
    size = grid * cells
    sizes = bucket_sizes(size, BucketConfig(grid=grid, largest_ratio=ratio))
    assert (size, size) in sizes and len(set(sizes)) == len(sizes)
    assert {(h, w) for w, h in sizes} == set(sizes) and [w for w, _ in sizes] == sorted(w for w, _ in sizes)
    for w, h in sizes:
        assert w % grid == h % grid == 0 and max(w, h) <= ratio * min(w, h)
        assert size * size * (1 - grid / size) <= w * h <= size * size


def test_the_buckets_of_a_size() -> None:
    sizes = bucket_sizes(64, BucketConfig(grid=8, largest_ratio=2.5))
    assert sizes == ((40, 96), (48, 80), (56, 72), (64, 64), (72, 56), (80, 48), (96, 40))
    where = {(100, 100): 3, (96, 40): 6, (1000, 10): 6, (10, 1000): 0, (3, 4): 2, (4, 3): 4, (16, 9): 5}
    assert {picture: nearest_bucket(*picture, sizes) for picture in where} == where


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300))
def test_a_cropped_picture_keeps_its_proportions_to_half_a_pixel(width: int, height: int) -> None:
    sizes = bucket_sizes(32, BucketConfig(grid=8))
    w, h = sizes[nearest_bucket(width, height, sizes)]
    cuts = []
    image = Image.new("RGB", (width, height))
    image.crop = lambda box: cuts.append(box) or Image.new("RGB", (box[2] - box[0], box[3] - box[1]))  # type: ignore
    assert fit_to(image, w, h, Fit.CROP).size == (w, h)
    left, top, right, bottom = cuts[0] if cuts else (0, 0, width, height)
    cut_w, cut_h = right - left, bottom - top
    assert (cut_w == width and abs(cut_h - width * h / w) <= 0.5) or (
        cut_h == height and abs(cut_w - height * w / h) <= 0.5
    )
    assert left == (width - cut_w) // 2 and top == (height - cut_h) // 2


@pytest.mark.parametrize("fit", [Fit.STRETCH, Fit.PAD])
def test_other_fits_fill_a_rectangle(fit: Fit) -> None:
    image = Image.new("RGB", (30, 20), (255, 0, 0))
    pixels = np.asarray(fit_to(image, 24, 8, fit))
    assert pixels.shape == (8, 24, 3)
    red = int((pixels[..., 1] == 0).sum())
    assert red == {Fit.STRETCH: 24 * 8, Fit.PAD: 12 * 8}[fit]
    if fit is Fit.PAD:
        assert (pixels[:, :6] == 255).all() and (pixels[:, 18:] == 255).all()


def counts_of(*counts: int) -> torch.Tensor:
    """Samples of the buckets in a mixed order."""
    names = torch.cat([torch.full((n,), b) for b, n in enumerate(counts)])
    return names[torch.randperm(len(names), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(("counts", "size"), [((7, 4, 1), 3), ((10, 2), 4), ((5,), 2), ((3, 0, 6), 1)])
def test_every_sample_is_seen_once_an_epoch_and_every_batch_lies_in_one_bucket(
    counts: tuple[int, ...], size: int
) -> None:
    bucket = counts_of(*counts)
    order = BucketOrder(3, bucket)
    steps = 3 * len(bucket)
    batches = [order.batch(step, size) for step in range(steps)]
    fresh = BucketOrder(3, bucket)
    assert [fresh.batch(step, size) for step in reversed(range(steps))] == batches[::-1]  # nothing but the step counts
    assert all(len(batch) == size and len({int(bucket[i]) for _, i in batch}) == 1 for batch in batches)
    seen = Counter(pair for batch in batches for pair in batch)
    # In so many steps each bucket has had 3 x size whole epochs.
    assert seen == Counter((epoch, i) for epoch in range(3 * size) for i in range(len(bucket)))
    assert [p for b in batches for p in b] != [
        p for b in map(BucketOrder(4, bucket).batch, range(steps), [size] * steps) for p in b
    ]


def test_no_bucket_hurries_ahead() -> None:
    bucket = counts_of(60, 30, 10)
    order, given = BucketOrder(0, bucket), torch.zeros(3)
    for step in range(200):
        given[order.turn(step)[0]] += 1
        due = (step + 1) * torch.tensor([0.6, 0.3, 0.1])
        assert (given - due).abs().max() <= 3


def write(folder: Path, **shapes: tuple[int, int]) -> Path:
    """Pictures of these sizes: a red left half, a blue right half."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in shapes.items():
        picture = Image.new("RGB", (width, height), (255, 0, 0))
        picture.paste((0, 0, 255), (width // 2, 0, width, height))
        (folder / f"{name}.png").write_bytes(png(picture))
        (folder / f"{name}.txt").write_text(f"a picture {name}")
    return folder


BUCKETS = DataConfig(size=32, fit=Fit.CROP, buckets=BucketConfig(grid=8))
SHAPES = {"a": (64, 64), "b": (80, 48), "c": (48, 80), "d": (200, 110), "e": (31, 32)}


def test_pictures_lie_in_the_tensor_of_their_bucket(tmp_path: Path) -> None:
    data = read_data(write(tmp_path, **SHAPES), BUCKETS)
    assert [tuple(part.shape[1:]) for part in data.parts] == [(3, 40, 24), (3, 32, 32), (3, 24, 40)]
    assert data.bucket.tolist() == [1, 2, 0, 2, 1] and data.row.tolist() == [0, 0, 0, 1, 1]
    assert data.images([1, 3]).shape == (2, 3, 24, 40)
    expected = fit_to(Image.open(tmp_path / "d.png"), 40, 24, Fit.CROP)
    assert torch.equal(data.parts[2][1].permute(1, 2, 0), torch.from_numpy(np.array(expected)))
    with pytest.raises(ValueError, match=r"buckets \[1, 2\] do not go into one batch"):
        data.images([0, 1])
    with pytest.raises(ValueError, match="3 sizes"):
        _ = data.pictures
    assert data.squares([0, 1, 2], 32).shape == (3, 3, 32, 32)
    assert torch.equal(data.squares([4, 0], 32), data.images([4, 0]))
    some = data.only({"caption": ("a picture a", "a picture b", "a picture d")})
    assert [r["caption"][-1] for r in some.records] == ["a", "b", "d"] and some.bucket.tolist() == [0, 1, 1]
    assert [tuple(p.shape) for p in some.parts] == [(1, 3, 32, 32), (2, 3, 24, 40)]
    assert torch.equal(some.images([0]), data.images([0])) and torch.equal(some.images([2, 1]), data.images([3, 1]))
    assert data.fingerprint == read_data(tmp_path, BUCKETS).fingerprint
    assert data.fingerprint != read_data(tmp_path, BUCKETS.model_copy(update={"flip": 0.5})).fingerprint


def test_a_mirrored_view_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    write(tmp_path, **{f"{i:02}": (32, 32) for i in range(20)})
    for name, words in (("03", "a cat left of a dog"), ("07", "turns Clockwise"), ("11", "bright, upright")):
        (tmp_path / f"{name}.txt").write_text(words)
    data = read_data(tmp_path, DataConfig(size=32, flip=0.5))
    samples = [(epoch, i) for epoch in range(30) for i in range(20)]
    flips = data.flips(samples, 0)
    assert torch.equal(flips.flip(0), data.flips(samples[::-1], 0)) and not torch.equal(flips, data.flips(samples, 1))
    share = flips.view(30, 20).float().mean(0)
    assert (share[[3, 7]] == 0).all() and (share[[0, 11]] > 0.2).all() and 0.4 < float(share[share > 0].mean()) < 0.6
    views = data.views(samples[:20], 0)
    for view, flipped, i in zip(views, flips, range(20), strict=False):
        assert torch.equal(view, data.images([i])[0].flip(-1) if flipped else data.images([i])[0])
    assert not read_data(tmp_path, DataConfig(size=32)).flips(samples, 0).any()


def test_keywords_that_speak_of_a_side_keep_a_picture_as_it_is() -> None:
    pictures = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    records = [
        {"caption": "arrow", "keywords": ["right"]},
        {"caption": "a", "captions": ["a", "leftmost"]},
        {"caption": "b"},
    ]
    flips = PictureSet(pictures, records, "x", flip=1.0).flips([(0, 0), (0, 1), (0, 2)], 0)
    assert flips.tolist() == [False, False, True]


def test_latents_are_those_of_the_views(tmp_path: Path) -> None:
    data = read_data(write(tmp_path, **SHAPES), BUCKETS.model_copy(update={"flip": 0.5}))
    torch.manual_seed(0)
    network = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1), num_res_blocks=1)).eval()
    latents = Latents(network, data, "cpu", CacheConfig(), tmp_path / "run")
    assert latents.shape == (4, 16, 16)
    for bucket in ([0, 4], [1, 3], [2]):
        samples = [(epoch, i) for epoch in range(4) for i in bucket]
        assert data.flips(samples, 5).unique().tolist() == [False, True]
        mean, _ = network.moments(data.views(samples, 5))
        assert torch.allclose(latents.of(samples, 5)[0], mean, atol=1e-5)


def test_several_captions_are_chosen_from(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(png(Image.new("RGB", (16, 16))))
    rows = [
        {"file_name": "a.png", "text": ["one", "two", "three"]},
        {"file_name": "b.png", "caption": "main", "captions": ["main", "other"]},
        {"file_name": "c.png", "text": ["fine", " "]},
        {"file_name": "d.png", "text": []},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_data(tmp_path, DataConfig(size=16))
    assert [r["caption"] for r in data.records] == ["one", "main"]
    assert [line.split(": ")[-1] for line in data.unreadable] == ["captions is not a list of texts", "no caption"]
    plain = CaptionConfig(article_share=0)
    drawn = Counter(caption(data.records[0], plain, generator(0, "t", i)) for i in range(300))
    assert set(drawn) == {"one", "two", "three"} and min(drawn.values()) > 60


def test_tags_are_shuffled_behind_the_first() -> None:
    config = CaptionConfig(article_share=0, shuffle_tags=0.5, keep_tags=1)
    record = {"caption": "cat, small,red , sitting"}
    drawn = Counter(caption(record, config, generator(0, "t", i)) for i in range(400))
    assert 180 < drawn.pop(record["caption"]) < 220
    assert len(drawn) == 6 and all(text.startswith("cat, ") for text in drawn)
    assert {tuple(sorted(text.split(", ")[1:])) for text in drawn} == {("red", "sitting", "small")}


MODES = {
    "palette": lambda p: p.convert("P", palette=Image.Palette.ADAPTIVE),
    "alpha": lambda p: p.convert("RGBA"),
    "cmyk": lambda p: p.convert("CMYK"),
    "deep": lambda p: Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257),
    "grey": lambda p: p.convert("L"),
}


def test_pictures_of_every_kind_are_read_right_and_each_bad_file_is_named_once(tmp_path: Path) -> None:
    """Upper left white, the rest grey; EXIF says that the file is to be turned."""
    picture = Image.new("RGB", (16, 8), (128, 128, 128))
    picture.paste((255, 255, 255), (0, 0, 8, 4))
    for name, convert in MODES.items():
        suffix = {"cmyk": "tif", "deep": "png"}.get(name, "png")
        convert(picture).save(tmp_path / f"{name}.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: the file's left column is the top row
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "bad.png").write_bytes(b"<html>")
    for path in list(tmp_path.iterdir()):
        path.with_suffix(".txt").write_text("grey")
    data = read_data(tmp_path, DataConfig(size=8, buckets=BucketConfig(grid=4), fit=Fit.CROP))
    assert len(data) == len(MODES) + 1
    images = torch.stack([data.images([i])[0] for i in range(len(data))])
    assert (images - images[0]).abs().max() <= 0.03
    assert float(images[0, 0, 0, 0]) > 0.97 and abs(float(images[0, 0, -1, -1])) < 0.03
    assert len(data.unreadable) == 1 and data.unreadable[0].startswith("bad.png: the picture is not a picture")


TINY = [
    "data.size=32", "data.include={}", "data.exclude={}",
    'diffusion.include={"caption": ["a picture b", "a picture c"]}', "data.fit=crop", "data.flip=0.5",
    'data.buckets={"grid": 8, "largest_ratio": 2}',
    "autoencoder.network.base_channels=32", "autoencoder.network.channel_mult=[1, 1]", "autoencoder.loop.steps=4",
    "autoencoder.loop.batch_size=2", "clip.vocabulary=520", "clip.text.width=32", "clip.text.heads=2",
    "clip.text.layers=1", "clip.text.mlp_width=64", "clip.text.projection=16", "clip.image.image_size=32",
    "clip.image.width=32", "clip.image.heads=2", "clip.image.layers=1", "clip.image.mlp_width=64",
    "clip.image.projection=16", "clip.loop.steps=3", "clip.loop.batch_size=2",
    "diffusion.network.model_channels=32", "diffusion.network.channel_mult=[1, 2]",
    "diffusion.network.attention_levels=[false, true]", "diffusion.network.head_channels=32",
    "diffusion.network.context_channels=32", 'diffusion.preview_prompts=["a picture"]',
    "diffusion.loop.steps=6", "diffusion.loop.batch_size=2", "diffusion.loop.save_every=2",
]  # fmt: skip


def test_the_three_stages_train_in_buckets_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    data = write(tmp_path / "data", **SHAPES)

    changes = [part for s in TINY for part in ("--set", s)]
    run, out = tmp_path / "run", tmp_path / "cut"
    assert langevin(["train", "emoji", "--data", str(data), "--out", str(run), "--device", "cpu", *changes]) == 0
    assert load_bundle(run / "model.safetensors").info.default_size == (32, 32)
    for stage in ("autoencoder", "clip"):
        shutil.copytree(run / stage, out / stage)
    config = override(RECIPES["emoji"](), TINY)
    pictures = read_data(data, config.data)
    steps = config.train_stage("diffusion", pictures, out, device="cpu", resume=False)
    for step in steps:
        if step.step == 3:
            steps.close()
    for _ in config.train_stage("diffusion", pictures, out, device="cpu", resume=True):
        pass
    for name in ("weights", "ema", "optimizer"):
        file = f"diffusion/checkpoints/00000006/{name}.safetensors"
        assert (out / file).read_bytes() == (run / file).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['data.buckets={"grid": 24}'], "data: size 64 is not a multiple of buckets.grid 24"),
        (['data.buckets={"grid": 2}'], "data.buckets.grid 2 is not a multiple of the autoencoder's factor 4"),
        (['data.buckets={"grad": 8}'], "data.buckets.grad = 8: Extra inputs"),
        (['data.buckets={"grid": 8, "largest_ratio": 0.5}'], "data.buckets.largest_ratio = 0.5"),
        (["data.flip=1.5"], "data.flip = 1.5"),
    ],
)
def test_impossible_buckets_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        override(RECIPES["emoji"](), settings)


def test_an_empty_order_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        BucketOrder(0, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError):
        read_data(Path("nowhere"), BUCKETS)
