"""What distillation leaves of the packaged model: a LoRA in four steps beside the model in four and in twenty.

    python benchmarks/few_steps.py --data FOLDER --clip RUN --lora runs/fast/lora.safetensors --out FOLDER

The prompts ask for a colour, a style or two of a thing, as in `benchmarks/model_evaluation.py`, whose measures these
are; every way draws the same prompts with the same seeds. Prints for each the shares that are right, and what is called
alignment: the share whose picture shows what was asked for and has its thing among the ten nearest names. Into --out go
the pictures, what was measured of each, and sheet.png: a row for each way, the first prompts of each kind from left to
right, nothing picked. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import langevin
from langevin.evaluation.extractors import open_extractor
from langevin.evaluation.whole.attributes import TEN
from langevin.evaluation.whole.run import evaluate_whole
from langevin.evaluation.whole.subject import Scale, Subject
from langevin.images.grids import contact_sheet
from langevin.tasks.request import GenerateRequest
from langevin.training.data import read_data
from langevin.training.recipes.emoji_128 import DRAWN, drawings

FEW: dict[str, Any] = {"sampler": "lcm", "guidance": 1.0}
WAYS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("model, dpmpp_2m, 20 steps, guidance 3", False, {"sampler": "dpmpp_2m", "steps": 20, "guidance": 3.0}),
    ("model, dpmpp_2m, 4 steps, guidance 3", False, {"sampler": "dpmpp_2m", "steps": 4, "guidance": 3.0}),
    ("model, dpmpp_2m, 4 steps, guidance 1", False, {"sampler": "dpmpp_2m", "steps": 4, "guidance": 1.0}),
    ("LoRA, lcm, 4 steps, guidance 1", True, {"steps": 4, **FEW}),
    ("LoRA, lcm, 2 steps, guidance 1", True, {"steps": 2, **FEW}),
    ("LoRA, lcm, 1 step, guidance 1", True, {"steps": 1, **FEW}),
)
"""What it is called, whether the LoRA is in it, and what is asked."""
KINDS = ("colour", "style", "two")
SHOWN = 3
"""Prompts of each kind on the sheet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clip", required=True, help="a clip.safetensors, or a training run's folder that holds one")
    parser.add_argument("--lora", required=True)
    parser.add_argument("--model", help="weights; without it, the model inside the package")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="pictures that go through the networks together")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plain = langevin.load(arguments.model, dtype=arguments.dtype)
    tuned = plain.with_lora(arguments.lora)
    extractor = open_extractor(f"clip={arguments.clip}", device="cpu")
    train, held_out = (read_data(arguments.data, drawings(split=(name,))) for name in ("train", "val"))
    how = f"batches of {arguments.batch}, {arguments.dtype}, {torch.get_num_threads()} threads"
    print(f"{arguments.prompts} prompts, {how}")
    rows = []
    for called, distilled, asked in WAYS:
        subject = Subject(
            bundle=(tuned if distilled else plain).bundle,
            extractor=extractor,
            train=train,
            held_out=held_out,
            styles=DRAWN,
            folder=arguments.out / called.replace(", ", "-").replace(" ", "-"),
            scale=Scale(attributes=arguments.prompts, batch=arguments.batch),
            request=GenerateRequest(prompt="", **asked),
        )
        began = time.process_time()
        found = evaluate_whole(subject, ["attributes"])["parts"]["attributes"]["details"]["prompts"]
        seconds = time.process_time() - began
        shares = {kind: share([o["right"] for o in found if o["kind"] == kind]) for kind in KINDS}
        shares["thing first"] = share([o["rank"] < 1 for o in found])
        shares["thing among ten"] = share([o["rank"] < TEN for o in found])
        shares["alignment"] = share([o["right"] and o["rank"] < TEN for o in found])
        figures = ", ".join(f"{name} {value:.3f}" for name, value in shares.items())
        print(f"{called}: {figures}; {seconds / len(found):.2f} s of processor time a picture, measuring included")
        places = [[i for i, o in enumerate(found) if o["kind"] == kind][:SHOWN] for kind in KINDS]
        chosen = [i for some in places for i in some]
        pictures = subject.made(subject.block("attributes", [o["prompt"] for o in found]))
        rows.append(pictures[chosen].float() / 127.5 - 1)
    print("the sheet's prompts: " + "; ".join(f"{found[i]['prompt']} (seed {found[i]['seed']})" for i in chosen))
    contact_sheet(torch.cat(rows), columns=SHOWN * len(KINDS)).save(arguments.out / "sheet.png")


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


if __name__ == "__main__":
    main()
