"""How well pictures of the packaged model keep to edges, without a ControlNet and with one; a sheet of eight of them.

    langevin train emoji-edges --data FOLDER --out runs/edges
    python benchmarks/edge_controlnet.py --data FOLDER --controlnet runs/edges/controlnet.safetensors [--count 16]

The hints are edges of pictures of the split val, whose names neither the model nor the ControlNet was trained on, at
equal distances; picture i has the seed i, nothing picked. Three prompts are tried: none, the picture's own caption, and
that of the next picture, which has nothing to do with the hint. The sheet's rows: hints, then for each prompt a row
without control and one with it.

Prints precision, recall and F1 of the edges within one pixel, means over the pictures with their standard errors, and
the same of the pictures themselves through the autoencoder (the ceiling).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import langevin
from langevin.evaluation.edges import edge_agreement, edges_of
from langevin.images.grids import contact_sheet
from langevin.images.hints import canny
from langevin.images.pixels import to_pictures, to_tensor
from langevin.tasks import ControlOptions, ControlRequest, control, text_to_image
from langevin.training.data import read_data
from langevin.training.recipes.emoji_edges import emoji_edges

SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--controlnet", type=Path, required=True)
    parser.add_argument("--model", help="weights; without it, the model inside the package")
    parser.add_argument("--count", type=int, default=16, help="pictures that are measured, at least 8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/images/edge-controlnet.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    recipe = emoji_edges()
    data = read_data(arguments.data, recipe.data).only(recipe.controlnet.held_out)
    chosen = data.some(arguments.count).tolist()
    real = data.images(chosen)
    hints = [canny(picture) for picture in to_pictures(real)]
    captions = [str(data.records[i]["caption"]) for i in chosen]
    others = captions[1:] + captions[:1]
    prompts = {"no prompt": [""] * len(hints), "own caption": captions, "another's caption": others}

    model = langevin.load(arguments.model)
    steerable = model.with_controlnet(arguments.controlnet)

    def drawn(prompts: list[str], steered: bool) -> list[Image.Image]:
        pictures = []
        for seed, (prompt, hint) in enumerate(zip(prompts, hints, strict=True)):
            options = {"prompt": prompt, "seed": seed, "steps": arguments.steps}
            plan = (
                control(steerable, [hint], ControlRequest(**options, controls=(ControlOptions(),)))
                if steered
                else text_to_image(model, ControlRequest(**options))
            )
            pictures += langevin.run(plan).finish().images
        return pictures

    rows = {
        f"{words}, {'with' if steered else 'without'} control": drawn(said, steered)
        for words, said in prompts.items()
        for steered in (False, True)
    }
    codec = model.bundle.autoencoder
    assert codec is not None
    with torch.no_grad():
        rows["through the autoencoder"] = to_pictures(codec.decode(codec.encode(real)))
    wanted = edges_of(real)
    for name, pictures in rows.items():
        figures = edge_agreement(edges_of(tensors(pictures)), wanted, 1)._asdict().items()
        print(f"{name}: " + ", ".join(f"{k} {float(v.mean()):.3f} +- {error(v):.3f}" for k, v in figures))

    places = torch.linspace(0, len(chosen) - 1, SHOWN).long().tolist()
    for i in places:
        print(f"seed {i}: hint of {captions[i]!r}, other caption {others[i]!r}")
    shown = [hints, *list(rows.values())[:-1]]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(torch.cat([tensors([row[i] for i in places]) for row in shown]), columns=SHOWN).save(arguments.output)


def tensors(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.cat([to_tensor(picture) for picture in pictures])


def error(values: torch.Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


if __name__ == "__main__":
    main()
