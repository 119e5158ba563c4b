"""What the models of drawn shapes that see a picture, and the cascade, make of captions whose pairs of shape and colour
they were never trained on; a sheet of eight of them.

    langevin shapes data/shapes
    python benchmarks/conditioned_shapes.py depth runs/shapes-depth --data data/shapes --output depth.png

KIND is depth, semantic, inpainting, upscaler or cascade, RUN the folder of the recipe `shapes-KIND`. Picture i is of
the i-th held-out scene and has the seed i, nothing picked; it is made in 20 steps of the recipe's guidance.

- depth, semantic: caption and map of the scene.
- inpainting: its picture with the box of the first thing and two pixels more around it hidden, and the caption.
- upscaler: its picture at a quarter of the size and the caption, noise level 20.
- cascade: the caption; the upscaler's noise level is `--noise-level`.

Prints for each part of `langevin.training.data.alignment` the share that is right, of the pictures, of the true scenes
(the ceiling) and of scenes that heed no caption (chance); for the upscaler also the mean PSNR, beside that of Lanczos.
The sheet's rows: what the network saw (the cascade: the base's picture, enlarged), what it made, the true scene.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import langevin
from langevin.evaluation.pairs import psnr
from langevin.images.grids import contact_sheet, save_picture
from langevin.images.pixels import to_pictures, to_tensor
from langevin.tasks import (
    DepthRequest,
    InpaintRequest,
    SemanticRequest,
    UpscaleRequest,
    cascade,
    depth_to_image,
    inpaint,
    semantic_to_image,
    upscale,
)
from langevin.tasks.plan import Plan
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.data.alignment import PARTS, chance_alignment, measure_alignment, scene_of
from langevin.training.data.maps import class_maps, depth_maps

SHOWN = 8
Maker = Callable[[int], tuple[Image.Image, Image.Image]]
"""Of a record's number: what the network saw, as an RGB picture, and what it made of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("depth", "semantic", "inpainting", "upscaler", "cascade"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder that langevin shapes wrote")
    parser.add_argument("--count", type=int, default=200, help="scenes that are measured, at least 8")
    parser.add_argument("--noise-level", type=int, default=100, help="of the cascade's upscaler")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="the sheet")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = read_data(arguments.data, DataConfig(size=32, include={"split": ("held-out",)}))
    real = to_pictures(data.images(list(range(arguments.count))))
    records = data.records[: arguments.count]
    make = maker(arguments.kind, arguments.run, data, real, arguments.noise_level)
    seen, made = [], []
    for i in range(arguments.count):
        given, picture = make(i)
        seen.append(given)
        made.append(picture)
        print(f"\r{i + 1}/{arguments.count}", end="", file=sys.stderr)
    print(file=sys.stderr)

    scenes = [scene_of(record) for record in records]
    found, best, chance = measure_alignment(made, scenes), measure_alignment(real, scenes), chance_alignment(scenes, 0)
    print(f"{arguments.count} pictures; clear {found.clear:.3f} (real {best.clear:.3f})")
    for part in PARTS:
        figures = (one.shares[part] for one in (found, best, chance))
        print(f"{part}: {' '.join(f'{f:.3f}' for f in figures)} (made, real, chance; {found.asked[part]} pictures)")
    if arguments.kind == "upscaler":
        for name, pictures in (("upscaler", made), ("Lanczos", seen)):
            print(f"{name}: {float(psnr(tensors(pictures), tensors(real)).mean()):.2f} dB")
    rows = [row[:SHOWN] for row in (seen, made, real)]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    large = [p.resize((96, 96), Image.Resampling.NEAREST) for row in rows for p in row]
    save_picture(arguments.output, contact_sheet(tensors(large), columns=SHOWN))


def maker(kind: str, run: Path, data: PictureSet, real: list[Image.Image], noise_level: int) -> Maker:
    """How a picture of the kind is made."""
    model = langevin.load(run / "model.safetensors")
    captions = [str(record["caption"]) for record in data.records]
    first = data.subset(list(range(len(real))))

    match kind:
        case "depth":
            values = depth_maps(first, None, 32)[:, 0]
            depths = [Image.fromarray(((v + 1) * 127.5).round().byte().numpy()) for v in values]
            return lambda i: (
                depths[i].convert("RGB"),
                finished(depth_to_image(model, depths[i], DepthRequest(prompt=captions[i], seed=i))),
            )
        case "semantic":
            numbers = class_maps(first, None, 32, 6).argmax(1).byte()
            classes = [Image.fromarray(n.numpy()) for n in numbers]
            shades = [Image.fromarray((n * 60).numpy()).convert("RGB") for n in numbers]
            return lambda i: (
                shades[i],
                finished(semantic_to_image(model, classes[i], SemanticRequest(prompt=captions[i], seed=i))),
            )
        case "inpainting":

            def inpainted(i: int) -> tuple[Image.Image, Image.Image]:
                box = hidden_box(*data.records[i]["boxes"][0])
                shown = real[i].copy()
                ImageDraw.Draw(shown).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(128, 128, 128))
                return shown, finished(inpaint(model, real[i], InpaintRequest(prompt=captions[i], seed=i, box=box)))

            return inpainted
        case "upscaler":

            def upscaled(i: int) -> tuple[Image.Image, Image.Image]:
                small = real[i].resize((8, 8), Image.Resampling.BOX)
                request = UpscaleRequest(prompt=captions[i], seed=i, noise_level=20)
                return small.resize((32, 32), Image.Resampling.LANCZOS), finished(upscale(model, small, request))

            return upscaled
        case _:
            large = langevin.load(run / "upscaler.safetensors")

            def cascaded(i: int) -> tuple[Image.Image, Image.Image]:
                request = UpscaleRequest(prompt=captions[i], seed=i, noise_level=noise_level)
                both = cascade(model, large, request)
                return both.small[0].resize((32, 32), Image.Resampling.NEAREST), both.images[0]

            return cascaded


def finished(plan: Plan) -> Image.Image:
    return langevin.run(plan).finish().images[0]


def hidden_box(x: float, y: float, radius: float) -> tuple[int, int, int, int]:
    """The box of a thing, whose place is told in shares of the width, in pixels of 32 with two more around it."""
    left, top = (max(0, int(32 * (v - radius)) - 2) for v in (x, y))
    right, bottom = (min(32, int(32 * (v + radius)) + 3) for v in (x, y))
    return left, top, right, bottom


def tensors(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.cat([to_tensor(picture) for picture in pictures])


if __name__ == "__main__":
    main()
