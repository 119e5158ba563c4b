"""The README's contact sheet: sixteen prompts in reading order, seeds 0 to 15, nothing picked.

    python benchmarks/contact_sheet.py [--model FILE] [--output docs/images/contact-sheet.png]
    python benchmarks/contact_sheet.py --rows "a red apple" "a cat" --output cats.png

With `--rows` each prompt has a row of its own, seeds 0 to 7. Prints the time of each picture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import langevin
from langevin.images.grids import contact_sheet
from langevin.images.pixels import to_tensor
from langevin.training.recipes.emoji import PROMPTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="weights; without it, the model inside the package")
    parser.add_argument("--output", type=Path, default=Path("docs/images/contact-sheet.png"))
    parser.add_argument("--rows", nargs="+", metavar="PROMPT", help="a row of seeds 0 to 7 for each of these prompts")
    arguments = parser.parse_args()
    import torch

    wanted = [(prompt, seed) for prompt in arguments.rows or () for seed in range(8)]
    wanted = wanted or [(prompt, seed) for seed, prompt in enumerate(PROMPTS)]

    model = langevin.load(arguments.model)
    pictures, times = [], []
    for prompt, seed in wanted:
        began = time.perf_counter()
        pictures.append(to_tensor(model.generate(prompt, seed=seed).images[0]))
        times.append(time.perf_counter() - began)
        print(f"{prompt}, seed {seed}: {times[-1]:.2f} s")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(torch.cat(pictures), columns=8).save(arguments.output)
    print(f"median {sorted(times)[len(times) // 2]:.2f} s a picture, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
