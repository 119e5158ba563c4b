"""Teach the packaged model a style that it has never seen, by a LoRA, and draw eight prompts before and after.

    python benchmarks/style_lora.py --data FOLDER [--output docs/images/style-lora.png] [--run RUN] [--threads 2]

The style is made here: `blueprint` turns each picture of one permissive style (Fluent's flat emoji, MIT licence) into
light lines on blue. FOLDER holds the captioned emoji that the model was trained on. The subjects of the eight prompts
are left out of the LoRA's training, so that it is seen to have learned a style and not these pictures. The first row of
the sheet is the model as it is, the second the same prompts and seeds with the LoRA.

Prints the training time, and for both rows and the style's own pictures how much of a picture has the paper's blue.
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
from torch import Tensor

import langevin
from langevin.cli.main import run as cli
from langevin.images.grids import contact_sheet
from langevin.images.pixels import to_tensor
from langevin.training.data import DataConfig, PictureSet, read_data

PROMPTS = ("a cat", "a red apple", "a house", "a rocket", "a tree", "a fish", "a cup of coffee", "a smiling face")
LEFT_OUT = r"\b(cats?|apples?|houses?|homes?|rocket|trees?|fish|coffee|cup|smil\w+|grin\w+)\b"
PAPER = np.array([28, 74, 158])
INK = np.array([240, 246, 255])

SETTINGS = (
    "lora.rank=16", "lora.alpha=16", 'lora.targets=["transformer", "convolution"]', "lora.loop.learning_rate=0.002",
    "lora.loop.steps=400", "lora.loop.batch_size=32", "lora.loop.warmup=30", "lora.loop.log_every=50",
    "lora.loop.sample_every=200", "lora.loop.save_every=200", "lora.guidance=3",
    "lora.preview_prompts=" + json.dumps([f"{p}, blueprint" for p in PROMPTS]),
)  # fmt: skip


def blueprint(picture: Tensor) -> Image.Image:
    """A uint8 picture [3, H, W] as light lines on blue: lines where the colour changes from a pixel to the next."""
    colours = picture.permute(1, 2, 0).numpy().astype(float) / 255
    change = np.zeros(colours.shape[:2])
    for axis in (0, 1):
        step = np.abs(np.diff(colours, axis=axis)).max(-1)
        change[tuple(slice(0, n) for n in step.shape)] = np.maximum(
            change[tuple(slice(0, n) for n in step.shape)], step
        )
    line = np.clip(change * 3, 0, 1)[..., None]
    return Image.fromarray(np.rint(PAPER + (INK - PAPER) * line).astype(np.uint8))


def write_style(data: PictureSet, folder: Path) -> int:
    """A shard of the style's pictures, without the subjects of the sheet; returns their number."""
    written = 0
    with tarfile.open(folder / "blueprint.tar", "w") as tar:
        for i, record in enumerate(data.records):
            words = " ".join([str(record["caption"]), *map(str, record.get("keywords") or ())])
            if re.search(LEFT_OUT, words):
                continue
            buffer = io.BytesIO()
            blueprint(data.pictures[i]).save(buffer, format="PNG")
            record_bytes = json.dumps({"caption": record["caption"]}).encode()
            for suffix, content in (("png", buffer.getvalue()), ("json", record_bytes)):
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            written += 1
    return written


def in_style(pictures: list[Image.Image]) -> float:
    """The share of pixels that have the paper's blue: within 40 of 255 in each channel."""
    colours = np.stack([np.asarray(picture, float) for picture in pictures])
    return float((np.abs(colours - PAPER).max(-1) <= 40).mean())


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
        wanted = {"style": ("fluent-flat",), "split": ("train",), "set": ("main",)}
        data = read_data(arguments.data, DataConfig(size=64, include=wanted))
        print(f"{write_style(data, folder)} pictures of {len(data)} in the style")
        command = ["finetune", "lora", "--data", str(folder), "--out", str(run), "--prompt", "{caption}, blueprint"]
        command += ["--device", "cpu", "--threads", str(arguments.threads)]
        command += [part for s in (*SETTINGS, *arguments.set) for part in ("--set", s)]
        began = time.perf_counter()
        if cli(command) != 0:
            raise SystemExit("training failed")
        print(f"trained in {time.perf_counter() - began:.0f} s, {arguments.threads} threads")
        plain = langevin.load()
        tuned = plain.with_lora(run / "lora.safetensors")
    rows = [[m.generate(f"{p}, blueprint", seed=i).images[0] for i, p in enumerate(PROMPTS)] for m in (plain, tuned)]
    style = [blueprint(picture) for picture in data.pictures[:100]]
    for name, pictures in (("before", rows[0]), ("after", rows[1]), ("the style's own pictures", style)):
        print(f"{name}: {in_style(pictures):.2f} of the pixels have the paper's blue")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    together = torch.cat([to_tensor(p) for row in rows for p in row])
    contact_sheet(together, columns=len(PROMPTS)).save(arguments.output)


if __name__ == "__main__":
    main()
