"""Teach the packaged model a style that it was trained without, by a LoRA, and draw eight prompts before and after.

    python benchmarks/style_lora.py --data FOLDER [--output docs/images/style-lora.png] [--run RUN] [--threads 2]

The style is Fluent's high-contrast icons (MIT licence), black on white: the packaged denoiser has seen the coloured
drawings alone. FOLDER holds the captioned emoji. The subjects of the eight prompts are left out of the LoRA's training,
so that it is seen to have learned a style and not these pictures. The first row of the sheet is the model as it is, the
second the same prompts and seeds with the LoRA.

Prints the training time, and for both rows and the style's own pictures how much of what is drawn is without colour.
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
from langevin.images.pixels import to_tensor
from langevin.training.data import DataConfig, PictureSet, read_data

PROMPTS = ("a cat", "a red apple", "a house", "a rocket", "a tree", "a fish", "a cup of coffee", "a smiling face")
LEFT_OUT = r"\b(cats?|apples?|houses?|homes?|rocket|trees?|fish|coffee|cup|smil\w+|grin\w+)\b"
STYLE = "black and white icon"

SETTINGS = (
    "lora.rank=16", "lora.alpha=16", 'lora.targets=["transformer", "convolution"]', "lora.loop.learning_rate=0.002",
    "lora.loop.steps=400", "lora.loop.batch_size=32", "lora.loop.warmup=30", "lora.loop.log_every=50",
    "lora.loop.sample_every=200", "lora.loop.save_every=200", "lora.guidance=3",
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
    """A picture of the data set."""
    return Image.fromarray(data.pictures[index].permute(1, 2, 0).numpy())


def colourless(pictures: list[Image.Image]) -> float:
    """Of the pixels that are not white, the share whose red, green and blue lie within 30 of 255 of each other."""
    colours = np.stack([np.asarray(picture, float) for picture in pictures])
    ink = colours.min(-1) < 230
    return float((np.ptp(colours, axis=-1) <= 30)[ink].mean())


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
        wanted = {"style": ("fluent-high-contrast",), "split": ("train",), "set": ("main",)}
        data = read_data(arguments.data, DataConfig(size=64, include=wanted))
        print(f"{write_style(data, folder)} pictures of {len(data)} in the style")
        command = ["finetune", "lora", "--data", str(folder), "--out", str(run), "--prompt", f"{{caption}}, {STYLE}"]
        command += ["--device", "cpu", "--threads", str(arguments.threads)]
        command += [part for s in (*SETTINGS, *arguments.set) for part in ("--set", s)]
        began = time.perf_counter()
        if cli(command) != 0:
            raise SystemExit("training failed")
        print(f"trained in {time.perf_counter() - began:.0f} s, {arguments.threads} threads")
        plain = langevin.load()
        tuned = plain.with_lora(run / "lora.safetensors")
    rows = [[m.generate(f"{p}, {STYLE}", seed=i).images[0] for i, p in enumerate(PROMPTS)] for m in (plain, tuned)]
    style = [drawn(data, i) for i in range(100)]
    for name, pictures in (("before", rows[0]), ("after", rows[1]), ("the style's own pictures", style)):
        print(f"{name}: {colourless(pictures):.2f} of what is drawn has no colour")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    together = torch.cat([to_tensor(p) for row in rows for p in row])
    contact_sheet(together, columns=len(PROMPTS)).save(arguments.output)


if __name__ == "__main__":
    main()
