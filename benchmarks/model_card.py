"""The figures of docs/model-card.md: reconstruction, and how the CLIP score depends on guidance.

    python benchmarks/model_card.py RUN --data FOLDER

RUN is a finished run folder of `langevin train emoji`; its own CLIP towers score its pictures. They were trained on
the same drawings, so the scores compare these pictures with each other and with nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import langevin
from langevin.images.pixels import to_tensor
from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.clip import Clip, ClipImage
from langevin.training.checkpointing import load_ema
from langevin.training.data import PictureSet, read_data
from langevin.training.objectives.clip import short_tokens
from langevin.training.recipes.emoji import emoji
from langevin.training.text_to_image import load_trained

NAMES = 48
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    config = emoji()
    data = read_data(arguments.data, config.data)
    reconstruction(load_ema(arguments.run / "autoencoder/checkpoints", AutoencoderKL(config.autoencoder.network)), data)

    tower = load_trained(config, data, arguments.run).text
    assert tower is not None
    clip = Clip(tower.network, ClipImage(config.clip.image))
    load_ema(arguments.run / "clip/checkpoints", clip)
    names = sorted({str(r["caption"]) for r in data.records})
    chosen = names[:: len(names) // NAMES][:NAMES]
    texts = clip.embed_text(short_tokens(tower.tokenizer, names))

    def score(what: str, pictures: Tensor, wanted: list[str]) -> None:
        similarity = clip.embed_image(pictures) @ texts.T
        own = similarity[range(len(wanted)), [names.index(name) for name in wanted]]
        rank = (similarity > own[:, None]).sum(1)
        first, ten = (float((rank < n).float().mean()) for n in (1, 10))
        print(f"{what}: CLIP score {own.mean():.3f}, own name first of {len(names)} {first:.2f}, in ten {ten:.2f}")

    model = langevin.load(str(arguments.run / "model.safetensors"))
    for guidance in GUIDANCE:
        made = [model.generate(p, seed=i, guidance=guidance, steps=20).images[0] for i, p in enumerate(chosen)]
        score(f"guidance {guidance:g}", torch.cat([to_tensor(image) for image in made]), chosen)
    seen = data.only(config.diffusion.include)
    real = {str(r["caption"]): i for i, r in reversed(list(enumerate(seen.records)))}
    drawn = [name for name in chosen if name in real]
    score(f"{len(drawn)} drawings that the denoiser saw", seen.images([real[name] for name in drawn]), drawn)


def reconstruction(codec: torch.nn.Module, data: PictureSet) -> None:
    """PSNR of every 20th picture decoded from its latent's mean."""
    assert isinstance(codec, AutoencoderKL)
    ratios = []
    for part in torch.arange(0, len(data), 20).split(50):
        pictures = data.images(part)
        error = (pictures - codec.decode(codec.moments(pictures)[0]).clamp(-1, 1)).square().mean((1, 2, 3))
        ratios.append(-10 * torch.log10(error / 4))
    found = torch.cat(ratios)
    print(f"reconstruction: PSNR {found.mean():.1f} dB, median {found.median():.1f}, lowest {found.min():.1f} "
          f"({len(found)} pictures)")  # fmt: skip


if __name__ == "__main__":
    main()
