"""Captioned shapes, made here: "a small red circle left of a blue square".

A scene is a function of (seed, index). What a caption says can be verified in a picture by measurement: see
`langevin.training.data.measuring`.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from langevin.checkpoints.atomic import atomic_write
from langevin.training.data.config import SceneConfig
from langevin.training.data.files import Sample
from langevin.training.randomness import seed_for

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 60, 190),
    "black": (30, 30, 30),
}
SIZES = {"small": 0.16, "medium": 0.27, "large": 0.39}
"""Width of the shape's box as a share of the picture's; drawn up to 5% larger or smaller. "medium" is not said."""
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

HELD_OUT = frozenset((shape, tuple(COLOURS)[i + 1]) for i, shape in enumerate(SHAPES))
"""The pairs that training never shows: the i-th shape in the (i+1)-th colour, both counted from 0: green circles, blue
squares, yellow triangles, purple crosses. Each shape and each colour is still seen, in other pairs."""

_MARGIN, _GAP = 0.03, 0.05
_SUBPIXELS = 8


class Thing(NamedTuple):
    """One shape of a scene."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return " ".join(word for word in self if word != "medium")


class Scene(NamedTuple):
    """One or two things. Two that are alike have no relation, two that differ have one."""

    things: tuple[Thing, ...]
    relation: str | None = None
    """Of the first to the second."""

    @property
    def caption(self) -> str:
        if len(self.things) == 1:
            return f"a {self.things[0]}"
        if self.relation is None:
            plural = f"{self.things[0]}es" if self.things[0].shape == "cross" else f"{self.things[0]}s"
            return f"two {plural}"
        return f"a {self.things[0]} {self.relation} a {self.things[1]}"

    @property
    def canonical(self) -> Scene:
        """The same for all ways to say the same: "A right of B" becomes "B left of A"."""
        if self.relation in ("right of", "below"):
            return Scene(self.things[::-1], OPPOSITE[self.relation])
        return self


class Placed(NamedTuple):
    """Where a thing is drawn: centre and half width of its box, as shares of the picture's width."""

    thing: Thing
    x: float
    y: float
    radius: float


def make_scene(seed: int, index: int, *, held_out: bool = False) -> tuple[Scene, tuple[Placed, ...]]:
    """Scene `index` of the set with this seed, and where its things lie.

    A third each are single things, two alike, and two that differ with a relation between them. With `held_out` the
    first thing is one of the pairs in `HELD_OUT`; without, none is. Sizes of two things are such that both fit.
    """
    chance = random.Random(seed_for(seed, "shapes", "held out" if held_out else "train", index))
    kind = chance.randrange(3)
    first = _thing(chance, held_out)
    if kind == 0:
        scene = Scene((first,))
    elif kind == 1:
        scene = Scene((first, first))
    else:
        second = first
        while second == first:
            second = _thing(chance, held_out and chance.random() < 0.5)
        scene = Scene((first, second), chance.choice(RELATIONS))
    return scene, _place(scene, chance)


def _thing(chance: random.Random, held_out: bool) -> Thing:
    pairs = [(s, c) for s in SHAPES for c in COLOURS if ((s, c) in HELD_OUT) == held_out]
    shape, colour = chance.choice(pairs)
    return Thing(chance.choice(tuple(SIZES)), colour, shape)


def _place(scene: Scene, chance: random.Random) -> tuple[Placed, ...]:
    """Along the relation's axis the boxes lie at least `_GAP` apart; across it their centres differ by at most a third
    of that distance, so that the relation is plain to see."""
    radii = [SIZES[thing.size] / 2 * chance.uniform(0.95, 1.05) for thing in scene.things]
    if len(radii) == 1:
        x, y = (chance.uniform(_MARGIN + radii[0], 1 - _MARGIN - radii[0]) for _ in range(2))
        return (Placed(scene.things[0], x, y, radii[0]),)
    relation = scene.relation or chance.choice(RELATIONS)
    free = 1 - 2 * _MARGIN - 2 * sum(radii) - _GAP
    before = free * chance.random()
    between = (free - before) * chance.random()
    order = (0, 1) if relation in ("left of", "above") else (1, 0)
    start, end = radii[order[0]], radii[order[1]]
    along = [0.0, 0.0]
    along[order[0]] = _MARGIN + before + start
    along[order[1]] = along[order[0]] + start + _GAP + between + end
    reach = abs(along[1] - along[0]) / 3
    across = [0.0, 0.0]
    across[0] = chance.uniform(_MARGIN + radii[0], 1 - _MARGIN - radii[0])
    low = max(_MARGIN + radii[1], across[0] - reach)
    high = min(1 - _MARGIN - radii[1], across[0] + reach)
    across[1] = chance.uniform(low, high) if low <= high else (low if across[0] < low else high)
    if relation in ("left of", "right of"):
        return tuple(Placed(t, along[i], across[i], radii[i]) for i, t in enumerate(scene.things))
    return tuple(Placed(t, across[i], along[i], radii[i]) for i, t in enumerate(scene.things))


def coverage(shape: str, x: float, y: float, radius: float, width: int, height: int) -> np.ndarray:
    """The share of each pixel that the shape covers, float64 H W, of 8 x 8 points a pixel; lengths in pixels.

    The box is centred on (x, y), `radius` is half its width. A triangle stands on its base, a cross's bars are a
    third of the box.
    """
    points = (np.arange(max(width, height) * _SUBPIXELS) + 0.5) / _SUBPIXELS
    u = ((points[: width * _SUBPIXELS] - x) / radius)[None, :]
    v = ((points[: height * _SUBPIXELS] - y) / radius)[:, None]
    box = (np.abs(u) <= 1) & (np.abs(v) <= 1)
    if shape == "circle":
        inside = u**2 + v**2 <= 1
    elif shape == "square":
        inside = box
    elif shape == "triangle":
        inside = box & (2 * np.abs(u) <= v + 1)
    elif shape == "cross":
        inside = box & ((np.abs(u) <= 1 / 3) | (np.abs(v) <= 1 / 3))
    else:
        raise ValueError(f"shape {shape!r} is unknown: {', '.join(SHAPES)}")
    return inside.reshape(height, _SUBPIXELS, width, _SUBPIXELS).mean((1, 3))


def draw_scene(placed: tuple[Placed, ...], size: int = 64) -> Image.Image:
    """An RGB picture of `size` x `size` pixels: the things on white, their edges smooth."""
    canvas = np.full((size, size, 3), 255.0)
    for thing, x, y, radius in placed:
        covered = coverage(thing.shape, x * size, y * size, radius * size, size, size)[..., None]
        canvas = canvas * (1 - covered) + np.array(COLOURS[thing.colour]) * covered
    return Image.fromarray(np.rint(canvas).astype(np.uint8))


def write_shapes(folder: Path, count: int, *, seed: int = 0, size: int = 64, held_out: bool = False) -> Path:
    """Write the first `count` scenes as one WebDataset shard that `langevin train` reads; the same bytes each time.

    The record holds `caption`, `split` ("train" or "held-out"), `things`, `relation`, and for each thing its box in
    `boxes`: x and y of the centre and half the width, as shares of the picture's. Returns the shard's path.
    """
    split = "held-out" if held_out else "train"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shapes-{split}.tar"
    with atomic_write(path) as temporary, tarfile.open(temporary, "w") as tar:
        for index in range(count):
            scene, placed = make_scene(seed, index, held_out=held_out)
            picture = io.BytesIO()
            draw_scene(placed, size).save(picture, format="PNG")
            record: dict[str, Any] = {
                "caption": scene.caption,
                "split": split,
                "things": [thing._asdict() for thing in scene.things],
                "relation": scene.relation,
                "boxes": [[p.x, p.y, p.radius] for p in placed],
            }
            key = f"shapes-{split}-{seed}-{index:08d}"
            _add(tar, f"{key}.png", picture.getvalue())
            _add(tar, f"{key}.json", json.dumps(record).encode())
    return path


def scene_samples(config: SceneConfig, others: int, size: int) -> Iterator[Sample]:
    """So many scenes that they are `config.share` of the samples, at least one, beside `others` of a data set.

    Their captions are whole phrases with their articles, which the record's `phrase` says: nothing is put before them.
    """
    for index in range(max(1, round(config.share / (1 - config.share) * others))):
        scene, placed = make_scene(config.seed, index)
        record = {"caption": scene.caption, "split": "train", "style": "shapes", "phrase": True}
        key = f"shapes-train-{config.seed}-{index:08d}"
        yield Sample(key, record, key, partial(draw_scene, placed, size))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
