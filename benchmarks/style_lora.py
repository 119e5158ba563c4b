"""Teach the packaged model a style that it was trained without, by a LoRA, and draw eight prompts before and after.

    python benchmarks/style_lora.py --data FOLDER [--output docs/images/style-lora.png] [--run RUN] [--threads 2]

The style is a blueprint, white lines on blue, which this script makes of Fluent's coloured drawings in the captioned
emoji of FOLDER. The subjects of the eight prompts are left out of the LoRA's training, so that it is seen to have
learned a style and not these pictures. The first row of the sheet is the model as it is, the second the same prompts
and seeds with the LoRA.

Prints the training time, and for the rows and the style's own pictures how much of the picture is blue.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import langevin
from langevin.cli.main import run as cli
from langevin.images.grids import contact_sheet
from langevin.images.hints import line_art
from langevin.images.pixels import to_tensor
from langevin.training.data import PictureSet, read_data
from langevin.training.recipes.emoji_128 import drawings

PROMPTS = ("a cat", "a red apple", "a house", "a rocket", "a tree", "a fish", "a cup of coffee", "a smiling face")
LEFT_OUT = r"\b(cats?|apples?|houses?|homes?|rocket|trees?|fish|coffee|cup|smil\w+|grin\w+)\b"
STYLE = "blueprint"
PAPER = np.array((24, 64, 144))
"""Red, green and blue of the paper, of 255; lines are white."""

SETTINGS = (
    "lora.rank=16", "lora.alpha=16", 'lora.targets=["transformer", "convolution"]', "lora.loop.learning_rate=0.002",
    "lora.loop.steps=250", "lora.loop.batch_size=32", "lora.loop.warmup=30", "lora.loop.log_every=50",
    "lora.loop.sample_every=125", "lora.loop.save_every=125", "lora.guidance=3",
    "lora.preview_prompts=" + json.dumps([f"{p}, {STYLE}" for p in PROMPTS]),
)  # fmt: skip


def write_style(data: PictureSet, folder: Path) -> int:
    """A shard of the style's pictures, without the subjects of the sheet; returns their number."""
    written = 0
    with tarfile.open(folder / "icons.tar", "w") as tar:
        for i, record in enumerate(data.records):
            words = " ".join([str(record["caption"]), *map(str, record.get("keywords") or ())])
            if re.search(LEFT_OUT, words):
                continue
            buffer = io.BytesIO()
            drawn(data, i).save(buffer, format="PNG")
            record_bytes = json.dumps({"caption": record["caption"]}).encode()
            for suffix, content in (("png", buffer.getvalue()), ("json", record_bytes)):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            written += 1
    return written


def drawn(data: PictureSet, index: int) -> Image.Image:
    """A picture of the data set as a blueprint."""
    picture = Image.fromarray(data.pictures[index].permute(1, 2, 0).numpy())
    lines = np.asarray(line_art(picture, deviation=1.2), float) / 255
    return Image.fromarray((PAPER + (255 - PAPER) * lines).round().astype(np.uint8))


def blue(pictures: list[Image.Image]) -> float:
    """Share of the pixels whose blue is at least 60 of 255 above their red and 30 above their green."""
    colours = np.stack([np.asarray(picture, float) for picture in pictures])
    above = colours[..., 2:] - colours[..., :2]
    return float(((above[..., 0] >= 60) & (above[..., 1] >= 30)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/images/style-lora.png"))
    parser.add_argument("--run", type=Path, help="run folder; a temporary one if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as of langevin finetune")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder, run = Path(temporary) / "style", arguments.run or Path(temporary) / "run"
        folder.mkdir()
        plain = langevin.load()
        data = read_data(arguments.data, drawings(split=("train",), style=("fluent-color",)))
        print(f"{write_style(data, folder)} blueprints of {len(data)} drawings")
        command = ["finetune", "lora", "--data", str(folder), "--out", str(run), "--prompt", f"{{caption}}, {STYLE}"]
        command += ["--device", "cpu", "--threads", str(arguments.threads)]
        command += [part for s in (*SETTINGS, *arguments.set) for part in ("--set", s)]
        began = time.perf_counter()
        if cli(command) != 0:
            raise SystemExit("training failed")
        print(f"trained in {time.perf_counter() - began:.0f} s, {arguments.threads} threads")
        tuned = plain.with_lora(run / "lora.safetensors")
    rows = [[m.generate(f"{p}, {STYLE}", seed=i).images[0] for i, p in enumerate(PROMPTS)] for m in (plain, tuned)]
    style = [drawn(data, i) for i in range(100)]
    for name, pictures in (("before", rows[0]), ("after", rows[1]), ("the style's own pictures", style)):
        print(f"{name}: {blue(pictures):.2f} of the picture is blue")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    together = torch.cat([to_tensor(p) for row in rows for p in row])
    contact_sheet(together, columns=len(PROMPTS)).save(arguments.output)


if __name__ == "__main__":
    main()
