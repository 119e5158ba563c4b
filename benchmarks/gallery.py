"""The pictures of docs/gallery.md: every kind of use by the model inside the package, seeds 0 to 3, nothing picked.

    python benchmarks/gallery.py [--photo FILE] [--output docs/images]

Without a photograph its row is left out. Prints what each row took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

import langevin
from langevin.api import Model
from langevin.images.hints import HINTS
from langevin.images.pixels import open_picture, to_rgb
from langevin.tasks import EditRequest, GenerateRequest, LargeRequest, edit, large, text_to_image

SEEDS = (0, 1, 2, 3)
GAP = 4

Row = Callable[[Model], list[Image.Image]]


def variations(model: Model) -> list[Image.Image]:
    """A cat, then "a dog" from it at four strengths."""
    cat = model.generate("a cat", seed=0).images[0]
    return [cat, *(model.img2img(cat, "a dog", strength=s, seed=0).images[0] for s in (0.4, 0.6, 0.8, 1.0))]


def repainted(model: Model) -> list[Image.Image]:
    """An apple, then a box in its middle as "a blue heart"."""
    apple = model.generate("a red apple", seed=0).images[0]
    box = tuple(apple.width * place // 64 for place in (14, 24, 50, 60))
    return [apple, *model.inpaint(apple, "a blue heart", box=box, seeds=SEEDS).images]


def continued(model: Model) -> list[Image.Image]:
    """A house, then half as much more on its right."""
    house = model.generate("a house", seed=0).images[0]
    right = house.width // 2
    return [house, *model.outpaint(house, "a house, a tree", right=right, seeds=SEEDS[:3]).images]


def edited(model: Model) -> list[Image.Image]:
    """An apple turned green, and a dog made of a cat, by the inversion of the picture."""
    rows = []
    for source, target in (("a red apple", "a green apple"), ("a cat", "a dog")):
        picture = model.generate(source, seed=0).images[0]
        request = EditRequest(source=source, prompt=target)
        rows += [picture, langevin.run(edit(model, picture, request)).finish().images[0]]
    return rows


def enlarged(model: Model) -> list[Image.Image]:
    """A sunflower, and one of twice the size in two passes."""
    small = model.generate("a sunflower", seed=0).images[0]
    plan = large(model, LargeRequest(prompt="a sunflower", hires=2, hires_strength=0.4, seed=0))
    return [small, langevin.run(plan).finish().images[0]]


def seamless(model: Model) -> list[Image.Image]:
    """A texture and four of it side by side."""
    request = GenerateRequest(prompt="a star", seamless="both", seed=0)
    tile = langevin.run(text_to_image(model, request)).finish().images[0]
    whole = Image.new("RGB", (2 * tile.width, 2 * tile.height))
    for place in range(4):
        whole.paste(tile, (place % 2 * tile.width, place // 2 * tile.height))
    return [tile, whole]


def of_a_photograph(photo: Path) -> Row:
    """A photograph at the model's size, then "a cat" from it."""

    def row(model: Model) -> list[Image.Image]:
        small = to_rgb(open_picture(photo)).resize(model.info.default_size, Image.Resampling.LANCZOS)
        return [small, HINTS["canny"](small), *model.img2img(small, "a cat", strength=0.7, seeds=SEEDS[:3]).images]

    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    rows: dict[str, Row] = {
        "img2img": variations,
        "inpaint": repainted,
        "outpaint": continued,
        "edit": edited,
        "large": enlarged,
        "seamless": seamless,
    }
    if arguments.photo is not None:
        rows["photograph"] = of_a_photograph(arguments.photo)
    model = langevin.load()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, row in rows.items():
        began = time.perf_counter()
        side_by_side(row(model)).save(arguments.output / f"gallery-{name}.png")
        print(f"{name}: {time.perf_counter() - began:.1f} s")


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """The pictures in a row on white, at their own sizes."""
    width = sum(p.width for p in pictures) + GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures) + 2 * GAP), "white")
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    return sheet


if __name__ == "__main__":
    main()
