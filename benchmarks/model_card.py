"""The figures of docs/model-card.md: reconstruction, and how often a picture is like the drawing that has its name.

    python benchmarks/model_card.py --data FOLDER [--model FILE] [--names 48]

Needs nothing but the captioned emoji in FOLDER and the model. A picture generated from a name is compared with every
drawing that the denoiser has seen, by the root mean square of their difference in pixels: no network judges another.
Drawings of one name in three renderings count once, by the nearest of them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import langevin
from langevin.images.pixels import to_tensor
from langevin.model.autoencoder import Autoencoder
from langevin.training.data import PictureSet, read_data
from langevin.training.recipes.emoji import emoji
from langevin.training.recipes.emoji_second import emoji_second

GUIDANCE = (1.0, 2.0, 3.0, 5.0)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="weights; without it, the model inside the package")
    parser.add_argument("--names", type=int, default=48, help="how many names, evenly taken from the alphabet")
    arguments = parser.parse_args()
    model = langevin.load(arguments.model)
    assert model.bundle.autoencoder is not None
    reconstruction(model.bundle.autoencoder, read_data(arguments.data, emoji().data))

    drawings = read_data(arguments.data, emoji_second().data)
    names = sorted({str(r["caption"]) for r in drawings.records})
    places = torch.tensor([names.index(str(r["caption"])) for r in drawings.records])
    pixels = drawings.pictures.flatten(1).float() / 255  # N 3*H*W
    chosen = names[:: len(names) // arguments.names][: arguments.names]
    print(f"{len(chosen)} of {len(names)} names, {len(drawings)} drawings, {model.info.default_steps} steps")

    def nearest(pictures: Tensor) -> Tensor:
        """The distance to the nearest drawing of each name, pictures x names."""
        distance = torch.cdist(((pictures + 1) / 2).flatten(1), pixels) / pixels.shape[1] ** 0.5
        lowest = torch.full((len(pictures), len(names)), torch.inf)
        return lowest.scatter_reduce(1, places.expand(len(pictures), -1), distance, "amin")

    for guidance in GUIDANCE:
        began = time.perf_counter()
        made = [model.generate(p, seed=i, guidance=guidance).images[0] for i, p in enumerate(chosen)]
        seconds = (time.perf_counter() - began) / len(made)
        distance = nearest(torch.cat([to_tensor(image) for image in made]))
        own = distance[range(len(chosen)), [names.index(name) for name in chosen]]
        rank = (distance < own[:, None]).sum(1)
        first, ten = (float((rank < n).float().mean()) for n in (1, 10))
        print(
            f"guidance {guidance:g}: own name nearest {first:.2f}, among the nearest ten {ten:.2f}, "
            f"distance to it {own.median():.3f}, to the nearest {distance.min(1).values.median():.3f} (medians); "
            f"{seconds:.2f} s a picture"
        )


def reconstruction(codec: Autoencoder, data: PictureSet) -> None:
    """PSNR of every 20th picture decoded from its latent's mean."""
    ratios = []
    for part in torch.arange(0, len(data), 20).split(50):
        pictures = data.images(part)
        error = (pictures - codec.decode(codec.encode(pictures)).clamp(-1, 1)).square().mean((1, 2, 3))
        ratios.append(-10 * torch.log10(error / 4))
    found = torch.cat(ratios)
    print(f"reconstruction: PSNR {found.mean():.1f} dB, median {found.median():.1f}, lowest {found.min():.1f} "
          f"({len(found)} pictures)")  # fmt: skip


if __name__ == "__main__":
    main()
