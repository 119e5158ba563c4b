"""What a denoiser sees beside the noised data: masks, depth, classes, small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from langevin.diffusion.schedule import NoiseSchedule
from langevin.errors import DataError
from langevin.images.maps import to_classes, to_values
from langevin.model.autoencoder import Autoencoder
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.training.conditions import (
    Condition,
    Depth,
    Inpainting,
    LowRes,
    Semantic,
    check_condition,
    further_channels,
    make_beside,
    needed_labels,
)
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.data.maps import SHAPE_CLASSES, class_maps, depth_maps
from langevin.training.data.shapes import write_shapes
from langevin.training.masks import Mask, draw_mask, random_mask
from langevin.training.randomness import generator, sample_generators

SCHEDULE = NoiseSchedule.scaled_linear()
SAMPLES = [(0, 4), (1, 1), (0, 0)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    """Scenes as `write_shapes` makes them."""
    folder = tmp_path_factory.mktemp("drawn")
    write_shapes(folder, 12, size=32)
    return read_data(folder, DataConfig(size=32))


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(base_channels=32, channel_mult=(1, 1), num_res_blocks=1)
    return Autoencoder(AutoencoderKL(config).requires_grad_(False), 0.5)


def test_masks_are_what_they_are_called() -> None:
    for i in range(40):
        boxes, strokes = (draw_mask(kind, 24, 32, generator(i, "mask")) for kind in (Mask.BOXES, Mask.STROKES))
        for mask in (boxes, strokes):
            assert mask.shape == (1, 24, 32) and set(mask.unique().tolist()) <= {0.0, 1.0}
            assert 0 < mask.sum() < mask.numel()
        # At most three boxes, each at most a quarter of the area.
        assert boxes.mean() <= 0.75
    assert draw_mask(Mask.WHOLE, 5, 6, generator(0)).all()
    wholes = sum(bool(random_mask(16, 16, generator(i), 0.25).all()) for i in range(400))
    assert 70 < wholes < 130  # 100 expected, deviation 9
    assert torch.equal(random_mask(16, 16, generator(1), 0.5), random_mask(16, 16, generator(1), 0.5))


def test_a_stroke_is_round_at_its_ends_and_as_wide_everywhere() -> None:
    """Every hidden pixel has hidden ones around it: no stroke is thinner than its brush of two pixels."""
    mask = draw_mask(Mask.STROKES, 48, 48, generator(7, "mask"))[None]
    grown = F.max_pool2d(1 - F.max_pool2d(1 - mask, 2, stride=1), 2, stride=1, padding=1)[..., :48, :48]
    assert (grown >= mask[..., : grown.shape[-2], : grown.shape[-1]]).float().mean() > 0.97


def test_inpainting_gives_the_mask_and_the_latents_of_what_it_leaves(
    drawn: PictureSet, autoencoder: Autoencoder
) -> None:
    beside = make_beside(Inpainting(whole_share=0.0), drawn, autoencoder, 16, SCHEDULE, seed=0)
    given = beside.of(SAMPLES, sample_generators(0, "x", 0, SAMPLES))
    assert given.concat is not None and given.labels is None and given.concat.shape == (3, 5, 16, 16)
    for row, (epoch, i) in enumerate(SAMPLES):
        [stream] = sample_generators(0, "x", 0, [(epoch, i)])
        image = drawn.images([i])
        mask = random_mask(32, 32, stream, 0.0)[None]
        assert torch.equal(given.concat[row, :1], mask[0, :, ::2, ::2])
        mean, logvar = autoencoder.network.moments(torch.where(mask == 1, torch.zeros(()), image))
        noise = torch.randn(4, 16, 16, generator=stream)
        expected = 0.5 * (mean + torch.exp(0.5 * logvar) * noise)
        assert torch.allclose(given.concat[row, 1:], expected[0], atol=1e-4)


def test_depth_of_drawn_shapes_is_their_order_by_size(drawn: PictureSet) -> None:
    maps = depth_maps(drawn, None, 32)
    assert maps.shape == (12, 1, 32, 32) and maps.amin((1, 2, 3)).eq(-1).all() and maps.amax((1, 2, 3)).eq(1).all()
    two = next(i for i, r in enumerate(drawn.records) if len({b[2] for b in r["boxes"]}) == 2)
    boxes = sorted(drawn.records[two]["boxes"], key=lambda b: b[2])
    values = [float(maps[two, 0, int(y * 32), int(x * 32)]) for x, y, _ in boxes]
    assert -1 < values[0] < values[1] and values[1] == pytest.approx(1, abs=0.01)
    # 2 r / R - 1 with the background at 0.
    assert values[0] == pytest.approx(2 * boxes[0][2] / boxes[1][2] - 1, abs=0.02)


def test_classes_of_drawn_shapes_cover_their_pixels(drawn: PictureSet) -> None:
    maps = class_maps(drawn, None, 8, 6)
    assert maps.shape == (12, 6, 8, 8) and torch.allclose(maps.sum(1), torch.ones(12, 8, 8))
    assert not maps[:, 5].any()
    for i, record in enumerate(drawn.records):
        inked = (drawn.images([i]) < 0.9).any(1).float().mean()  # the edges' mixed pixels count as well
        assert float(1 - maps[i, 0].mean()) == pytest.approx(float(inked), abs=0.06)
        there = {SHAPE_CLASSES[k] for k in range(1, 5) if maps[i, k].any()}
        assert there == {thing["shape"] for thing in record["things"]}
    with pytest.raises(DataError, match=r"condition.classes 4: drawn shapes have 5"):
        class_maps(drawn, None, 8, 4)


def test_maps_are_mirrored_with_their_pictures(drawn: PictureSet) -> None:
    flipped = PictureSet(drawn.parts, [{**r, "caption": "a thing"} for r in drawn.records], "x", flip=1.0)
    beside = make_beside(Depth(), flipped, None, 32, SCHEDULE, seed=0)
    plain = make_beside(Depth(), drawn, None, 32, SCHEDULE, seed=0)
    a, b = (x.of(SAMPLES, sample_generators(0, "x", 0, SAMPLES)).concat for x in (beside, plain))
    assert a is not None and b is not None and torch.equal(a, b.flip(-1)) and not torch.equal(a, b)


def test_maps_are_read_from_files(shapes: Path, tmp_path: Path) -> None:
    data = read_data(shapes, DataConfig(size=32))
    bare = PictureSet(data.parts, [{"caption": "x"}] * len(data), data.fingerprint, keys=data.keys)
    with pytest.raises(DataError, match=r"picture 0 of the data has no map: give condition.maps"):
        depth_maps(bare, None, 8)
    with pytest.raises(DataError, match=r"no map for the picture flat__blue-circle: name it flat__blue-circle\.png"):
        depth_maps(bare, tmp_path, 8)
    ramp = np.tile(np.arange(32, dtype=np.uint16) * 2000, (32, 1))
    for key in data.keys:
        Image.fromarray(ramp).save(tmp_path / f"{key}.png")
    maps = depth_maps(bare, tmp_path, 32)
    assert torch.allclose(maps[3, 0, 5], torch.linspace(-1, 1, 32), atol=1e-6)
    with pytest.raises(DataError, match=r"blue-circle.png: a picture of mode I;16.*: a map of classes is"):
        class_maps(bare, tmp_path, 8, 3)
    halves = Image.new("RGB", (16, 16), "#ff0000")
    halves.paste("#0000ff", (8, 0, 16, 16))
    for key in data.keys:
        halves.save(tmp_path / f"{key}.png")
    maps = class_maps(bare, tmp_path, 8, 3, ("red", "#00ff00", "#0000ff"))
    assert maps[0, 0, :, :4].eq(1).all() and maps[0, 2, :, 4:].eq(1).all() and not maps[0, 1].any()
    with pytest.raises(DataError, match="it has the colour #0000ff, which the palette has not"):
        class_maps(bare, tmp_path, 8, 2, ("red", "lime"))


def test_numbers_in_pictures() -> None:
    indexed = Image.new("P", (4, 4), 2)
    indexed.putpalette([255, 0, 0] * 3)
    assert to_classes(indexed, 3).eq(2).all()
    with pytest.raises(DataError, match="it has the class 2; there are 2, from 0"):
        to_classes(indexed, 2)
    assert float(to_values(Image.new("F", (2, 2), 7.5))[0, 0]) == 7.5
    with pytest.raises(DataError, match="a picture of mode RGB"):
        to_values(Image.new("RGB", (2, 2), "red"))
    assert float(to_values(Image.new("RGB", (2, 2), (7, 7, 7)))[0, 0]) == 7
    with pytest.raises(DataError, match="not finite"):
        to_values(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)))


def test_a_small_picture_is_noised_to_the_level_of_its_label(drawn: PictureSet) -> None:
    beside = make_beside(LowRes(size=8), drawn, None, 8, SCHEDULE, seed=0)
    levels = []
    for step in range(60):
        given = beside.of(SAMPLES, sample_generators(0, "x", step, SAMPLES))
        assert given.concat is not None and given.labels is not None and given.concat.shape == (3, 3, 8, 8)
        levels += given.labels.tolist()
    assert min(levels) >= 0 and 330 < max(levels) <= 350
    [stream] = sample_generators(0, "x", 59, SAMPLES[1:2])
    level = int(torch.randint(351, (), generator=stream))
    assert level == int(given.labels[1])
    small = drawn.images([1]).unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5))
    abar = float(SCHEDULE.abar[level])
    expected = abar**0.5 * small + (1 - abar) ** 0.5 * torch.randn(1, 3, 8, 8, generator=stream)
    assert torch.allclose(given.concat[1:2], expected, atol=1e-5)
    # On a larger grid the same, stretched.
    wide = make_beside(LowRes(size=8), drawn, None, 32, SCHEDULE, seed=0)
    concat = wide.of(SAMPLES, sample_generators(0, "x", 59, SAMPLES)).concat
    assert concat is not None and torch.equal(concat, F.interpolate(given.concat, (32, 32), mode="bilinear"))


def test_each_sample_is_independent_of_its_batch(drawn: PictureSet, autoencoder: Autoencoder) -> None:
    for condition in (Inpainting(), LowRes(size=8)):
        beside = make_beside(condition, drawn, autoencoder, 16, SCHEDULE, seed=0)
        whole = beside.of(SAMPLES, sample_generators(0, "x", 5, SAMPLES)).concat
        alone = beside.of(SAMPLES[1:2], sample_generators(0, "x", 5, SAMPLES[1:2])).concat
        assert whole is not None and alone is not None and torch.allclose(whole[1:2], alone, atol=1e-5)


def test_examples_are_always_the_same_and_can_be_shown(drawn: PictureSet, autoencoder: Autoencoder) -> None:
    for condition in (Inpainting(), Depth(), Semantic(classes=6), LowRes(size=8)):
        beside = make_beside(condition, drawn, autoencoder, 16, SCHEDULE, seed=0)
        one, two = beside.examples(4), beside.examples(4)
        assert one.indices == [0, 3, 7, 11] and torch.equal(
            torch.as_tensor(one.cond.concat), torch.as_tensor(two.cond.concat)
        )
        assert one.shown and all(row.shape == (4, 3, 32, 32) and row.abs().max() <= 1 for row in one.shown)
        assert beside.facts["kind"] == condition.kind.value


@pytest.mark.parametrize(
    ("condition", "channels", "labels"),
    [(Inpainting(), 5, None), (Depth(), 1, None), (Semantic(classes=7), 7, None), (LowRes(size=8), 3, 1000)],
)
def test_channels_and_labels(condition: Condition, channels: int, labels: int | None) -> None:
    assert further_channels(condition, 4) == channels and needed_labels(condition, SCHEDULE) == labels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_condition(LowRes(size=5), 32, 4, SCHEDULE), "condition.size 5 is not a proper divisor"),
        (lambda: check_condition(LowRes(size=8, largest_level=1000), 32, 4, SCHEDULE), "the schedule ends at 999"),
        (lambda: check_condition(Semantic(classes=5), 32, 4, SCHEDULE), "is read as one for inpainting"),
        (lambda: Semantic(classes=3, maps=Path("x"), palette=("red",)), "palette has 1 colours for 3 classes"),
        (lambda: Semantic(classes=1, maps=Path("x"), palette=("red",)), "greater than or equal to 2"),
        (lambda: Semantic(classes=2, palette=("red", "blue")), "palette is for the maps in a folder"),
    ],
)
def test_what_does_not_fit_is_said(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
