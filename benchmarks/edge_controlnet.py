"""How well pictures of the packaged model keep to edges, without a ControlNet and with one; a sheet of eight of them.

    langevin train emoji-edges --data FOLDER --out runs/edges
    python benchmarks/edge_controlnet.py --data FOLDER --controlnet runs/edges/controlnet.safetensors [--count 48]

The hints are edges of pictures of the recipe's split val, which the ControlNet was not trained on, at equal distances;
picture i is made of its caption with the seed i, nothing picked. The sheet's rows: hints, the pictures that they are
of, what is made without control, what is made with it.

Prints precision, recall and F1 of the edges within one pixel, means over the pictures with their standard errors: for
both, for the pictures through the autoencoder alone (the ceiling), and for pictures with control against the hint of
the next picture (chance).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import langevin
from langevin.checkpoints.steering import load_steering
from langevin.evaluation.edges import edge_agreement, edges_of
from langevin.images.grids import contact_sheet
from langevin.images.hints import canny
from langevin.images.pixels import to_pictures, to_tensor
from langevin.tasks import ControlRequest, Steer, control
from langevin.tasks.setup import Input
from langevin.training.data import read_data
from langevin.training.recipes.emoji_edges import emoji_edges

SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--controlnet", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48, help="pictures that are measured, at least 8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("docs/images/edge-controlnet.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    recipe = emoji_edges()
    data = read_data(arguments.data, recipe.data).only(recipe.controlnet.held_out)
    chosen = data.some(arguments.count).tolist()
    pictures = to_pictures(data.images(chosen))
    captions = [str(data.records[i]["caption"]) for i in chosen]
    hints = [canny(picture) for picture in pictures]

    model = langevin.load()
    network = load_steering(arguments.controlnet, model.bundle)

    def drawn(seed: int, hint: Image.Image | None) -> Image.Image:
        if hint is None:
            return model.generate(captions[seed], seed=seed, steps=arguments.steps).images[0]
        request = ControlRequest(prompt=captions[seed], seed=seed, steps=arguments.steps)
        steer = Steer(picture=Input("control 0", hint), through=network)
        return langevin.run(control(model, request, [steer])).finish().images[0]

    without = [drawn(i, None) for i in range(len(chosen))]
    steered = [drawn(i, hint) for i, hint in enumerate(hints)]
    real = data.images(chosen)
    codec = model.bundle.autoencoder
    assert codec is not None
    with torch.no_grad():
        through = codec.decode(codec.encode(real)).clamp(-1, 1)

    wanted = edges_of(real)
    for name, found, against in (
        ("without control", tensors(without), wanted),
        ("with control", tensors(steered), wanted),
        ("through the autoencoder", through, wanted),
        ("with control, another's hint", tensors(steered), wanted.roll(-1, 0)),
    ):
        figures = edge_agreement(edges_of(found), against, 1)._asdict().items()
        print(f"{name}: " + ", ".join(f"{k} {float(v.mean()):.3f} +- {error(v):.3f}" for k, v in figures))

    places = torch.linspace(0, len(chosen) - 1, SHOWN).long().tolist()
    for i in places:
        print(f"{captions[i]}, seed {i}")
    rows = [[row[i] for i in places] for row in (hints, pictures, without, steered)]
    sheet = contact_sheet(torch.cat([to_tensor(p) for row in rows for p in row]), columns=SHOWN)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.output)


def tensors(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.cat([to_tensor(picture) for picture in pictures])


def error(values: torch.Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


if __name__ == "__main__":
    main()
