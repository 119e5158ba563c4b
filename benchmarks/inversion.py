"""How exactly each way of inversion comes back, and what edits make of a picture, with the packaged model.

    python benchmarks/inversion.py [--model FILE] [--output docs/images/edits.png]

Prints the PSNR of the picture that is decoded again, in decibels, at guidance 1 and 4, the processor time and the
deviation of the noise found (1 for unit noise). The sheet: the picture, then prompt_to_prompt, diffedit and plain.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import langevin
from langevin.images.grids import contact_sheet
from langevin.images.pixels import to_tensor
from langevin.tasks import EditRequest, InvertRequest, edit, invert

SOURCE, TARGET = "a red apple", "a green apple"
WAYS = ("ddim", "fixed_point", "edict", "bdia", "null_text")
EDITS: tuple[dict[str, Any], ...] = ({}, {"method": "diffedit", "mask_samples": 4}, {"method": "plain"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="weights; without it, the model inside the package")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/images/edits.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = langevin.load(arguments.model)
    picture = model.generate(SOURCE, seed=0).images[0]
    for way in WAYS:
        for guidance in (4.0,) if way == "null_text" else (1.0, 4.0):
            request = InvertRequest(prompt=SOURCE, inversion=way, steps=arguments.steps, guidance=guidance)
            began = time.process_time()
            found = invert(model, picture, request)
            seconds = time.process_time() - began
            noise = float(found.x.std() / (1 + found.sigmas[0] ** 2) ** 0.5)
            print(f"{way}, guidance {guidance:g}: {found.psnr:.2f} dB, {seconds:.1f} s, deviation {noise:.2f}")
    print(f"the autoencoder alone: {found.autoencoder_psnr:.2f} dB")
    cells = [picture]
    for options in EDITS:
        request = EditRequest(source=SOURCE, prompt=TARGET, inversion="ddim", steps=arguments.steps, seed=0, **options)
        plan = edit(model, picture, request)
        print(f"{request.method}: " + "; ".join(plan.notices))
        cells.append(langevin.run(plan).finish().images[0])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(torch.cat([to_tensor(cell) for cell in cells]), columns=len(cells)).save(arguments.output)


if __name__ == "__main__":
    main()
