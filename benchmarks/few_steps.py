"""What distillation leaves of the packaged model's drawings: a LoRA in four steps beside the model in four and twenty.

    python benchmarks/few_steps.py --data FOLDER --lora runs/fast/lora.safetensors [--names 24] [--output SHEET.png]

As `benchmarks/model_card.py` does it: a picture generated from a name is compared with every drawing that the denoiser
has seen, by the root mean square of their difference in pixels; drawings of one name count once, by the nearest. The
sheet has a row for each way, the first names from left to right, nothing picked.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import langevin
from langevin.images.grids import contact_sheet
from langevin.images.pixels import to_tensor
from langevin.training.data import read_data
from langevin.training.recipes.emoji_second import emoji_second

FEW: dict[str, Any] = {"sampler": "lcm", "guidance": 1.0}
WAYS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("model, dpmpp_2m, 20 steps, guidance 3", False, {"steps": 20, "guidance": 3.0}),
    ("model, dpmpp_2m, 4 steps, guidance 3", False, {"steps": 4, "guidance": 3.0}),
    ("model, dpmpp_2m, 4 steps, guidance 1", False, {"steps": 4, "guidance": 1.0}),
    ("model, lcm, 4 steps, guidance 1", False, {"steps": 4, **FEW}),
    ("LoRA, lcm, 4 steps, guidance 1", True, {"steps": 4, **FEW}),
    ("LoRA, lcm, 2 steps, guidance 1", True, {"steps": 2, **FEW}),
    ("LoRA, lcm, 1 step, guidance 1", True, {"steps": 1, **FEW}),
)
"""What it is called, whether the LoRA is in it, and what is asked."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lora", required=True)
    parser.add_argument("--names", type=int, default=24, help="how many names, evenly taken from the alphabet")
    parser.add_argument("--output", type=Path, help="where the sheet of the first nine goes")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plain = langevin.load()
    tuned = plain.with_lora(arguments.lora)
    drawings = read_data(arguments.data, emoji_second().data)
    names = sorted({str(r["caption"]) for r in drawings.records})
    places = torch.tensor([names.index(str(r["caption"])) for r in drawings.records])
    pixels = drawings.pictures.flatten(1).float() / 255  # N 3*H*W
    chosen = names[:: len(names) // arguments.names][: arguments.names]
    print(f"{len(chosen)} of {len(names)} names, {len(drawings)} drawings, {arguments.threads} threads")

    def nearest(pictures: Tensor) -> Tensor:
        """The distance to the nearest drawing of each name, pictures x names."""
        distance = torch.cdist(((pictures + 1) / 2).flatten(1), pixels) / pixels.shape[1] ** 0.5
        lowest = torch.full((len(pictures), len(names)), torch.inf)
        return lowest.scatter_reduce(1, places.expand(len(pictures), -1), distance, "amin")

    rows = []
    for called, distilled, asked in WAYS:
        model = tuned if distilled else plain
        began = time.process_time()
        made = [model.generate(p, seed=i, **asked).images[0] for i, p in enumerate(chosen)]
        seconds = (time.process_time() - began) / len(made)
        pictures = torch.cat([to_tensor(image) for image in made])
        distance = nearest(pictures)
        own = distance[range(len(chosen)), [names.index(name) for name in chosen]]
        first = float(((distance < own[:, None]).sum(1) < 1).float().mean())
        print(
            f"{called}: own name nearest {first:.2f}, distance to it {own.median():.3f} (median), {own.mean():.3f} "
            f"(mean); {seconds:.2f} s of processor time a picture",
            flush=True,
        )
        rows.append(pictures[:9])
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(torch.cat(rows), columns=len(rows[0])).save(arguments.output)


if __name__ == "__main__":
    main()
