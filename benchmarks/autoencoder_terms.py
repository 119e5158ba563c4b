"""The terms of the autoencoder's loss, each added to the ones before it, on held-out pictures: one row a variant.

    python benchmarks/autoencoder_terms.py --data FOLDER [--steps 200] [--size 32] [--style noto] [--threads 1]

Every variant starts from the same weights and sees the same batches. The perceptual term's features are of a CLIP
image tower that is trained first on the same pictures, for half as many steps of 32; the distance in the last column
is in those of a second tower of another seed, which no variant was trained on. One picture in ten is held out.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from langevin.evaluation.pictures import psnr, ssim
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.clip import Clip, ClipImage, ClipText
from langevin.networks.discriminator import DiscriminatorConfig
from langevin.training.checkpointing import load_ema
from langevin.training.config import LoopConfig
from langevin.training.data import DataConfig, PictureSet, read_data
from langevin.training.loop import train
from langevin.training.objectives.adversarial import AdversarialConfig, with_discriminator
from langevin.training.objectives.autoencoder import AutoencoderObjective
from langevin.training.objectives.clip import ClipObjective
from langevin.training.objectives.perceptual import ClipDistance, Perceptual
from langevin.training.recipes import RECIPES
from langevin.training.text_to_image import TextToImageConfig, text_config, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--style", default="noto")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = DataConfig(size=arguments.size, include={"set": ("main",), "style": (arguments.style,)})
    everything = read_data(arguments.data, wanted)
    index = torch.arange(len(everything))
    data, held_out = everything.subset(index[index % 10 != 0]), everything.subset(index[index % 10 == 0])
    print(f"{len(data)} pictures of {arguments.size} pixels, {len(held_out)} held out, {arguments.steps} steps of 8")
    first, second = (ClipDistance(tower(data, arguments.size, arguments.steps // 2, seed)) for seed in (0, 1))
    start = arguments.steps // 2
    adversarial = AdversarialConfig(network=DiscriminatorConfig(base_channels=16, layers=1), weight=0.1, start=start)
    perceptual = Perceptual(first, 0.1, {})
    print(f"{'terms':<44} {'PSNR dB':>8} {'SSIM':>7} {'edges':>7} {'distance':>9} {'seconds':>8}")
    for words, edge_weight, term, judge in (
        ("pixels", 0.0, None, None),
        ("pixels, edges", 1.0, None, None),
        ("pixels, edges, perceptual", 1.0, perceptual, None),
        ("pixels, edges, discriminator", 1.0, None, adversarial),
        ("pixels, edges, perceptual, discriminator", 1.0, perceptual, adversarial),
        ("pixels, discriminator", 0.0, None, adversarial),
    ):
        began = time.perf_counter()
        codec = trained(data, arguments.steps, edge_weight, term, judge)
        seconds = time.perf_counter() - began
        a, b = held_out.images(range(len(held_out))), reconstructed(codec, held_out)
        edges = float(torch.diff(b).abs().mean() / torch.diff(a).abs().mean())
        with torch.no_grad():
            distance = float(second(a, b).mean())
        figures = f"{float(psnr(a, b).mean()):8.2f} {float(ssim(a, b).mean()):7.4f} {edges:7.3f} {distance:9.4f}"
        print(f"{words:<44} {figures} {seconds:8.0f}", flush=True)


def tower(data: PictureSet, size: int, steps: int, seed: int) -> ClipImage:
    """A CLIP image tower of the data, averaged weights."""
    recipe = RECIPES["emoji"]()
    assert isinstance(recipe, TextToImageConfig)
    image = dataclasses.replace(recipe.clip.image, image_size=size, patch_size=4, width=64, heads=2, mlp_width=128)
    text = dataclasses.replace(recipe.clip.text, width=64, heads=2, layers=2, mlp_width=128)
    config = recipe.model_copy(
        update={"seed": seed, "clip": recipe.clip.model_copy(update={"image": image, "text": text, "vocabulary": 768})}
    )
    tokenizer = train_tokenizer(config, data)
    torch.manual_seed(seed)
    made = ClipImage(image)
    clip = Clip(ClipText(text_config(config, tokenizer)), made)
    with tempfile.TemporaryDirectory() as folder:
        run(ClipObjective(clip, tokenizer, data, config.captions, seed=seed, device="cpu"), steps, 32, 1e-3, folder)
        load_ema(Path(folder) / "checkpoints", clip)
    return made


def trained(
    data: PictureSet, steps: int, edge_weight: float, term: Perceptual | None, judge: AdversarialConfig | None
) -> AutoencoderKL:
    """Averaged weights."""
    torch.manual_seed(0)
    config = AutoencoderConfig(base_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1, latent_channels=4)
    objective = AutoencoderObjective(
        AutoencoderKL(config),
        data,
        seed=0,
        kl_weight=1e-4,
        edge_weight=edge_weight,
        device="cpu",
        perceptual=term,
        adversarial=judge,
    )
    codec = AutoencoderKL(config)
    with tempfile.TemporaryDirectory() as folder:
        run(objective, steps, 8, 6e-4, folder)
        load_ema(Path(folder) / "checkpoints", with_discriminator(codec, judge))
    return codec


def run(objective: AutoencoderObjective | ClipObjective, steps: int, batch: int, rate: float, folder: str) -> None:
    loop = LoopConfig(
        steps=steps, batch_size=batch, learning_rate=rate, warmup=min(50, steps), weight_decay=0.0, ema_decay=0.99,
        save_every=steps, sample_every=steps,
    )  # fmt: skip
    for _ in train(objective, loop, Path(folder), seed=0):
        pass


@torch.no_grad()
def reconstructed(codec: AutoencoderKL, data: PictureSet) -> torch.Tensor:
    """From the latents' means."""
    parts = [codec.decode(codec.moments(data.images(some))[0]) for some in torch.arange(len(data)).split(32)]
    return torch.cat(parts).clamp(-1, 1)


if __name__ == "__main__":
    main()
