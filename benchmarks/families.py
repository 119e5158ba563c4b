"""What a picture costs each family, with the networks of the Fashion-MNIST recipes and random weights.

    python benchmarks/families.py sampling [--sizes 8,16,28] [--batch 64] [--rounds 3] [--families latent,gan]
        Seconds a picture, in a batch and alone, at several sizes, and by which power of the number of pixels they grow:
        the slope of a straight line through the logarithms.

    python benchmarks/families.py training [--batch 64] [--rounds 5]
        Seconds a picture of one training step and of one sampler's step, the same U-Net on pixels and on latents; what
        the latents' autoencoder adds stands beside.

Run it on a machine that does nothing else, or with `--clock cpu` on one thread, which counts the processor's time; the
hardware is printed with the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from langevin.baselines.compare import Clock
from langevin.baselines.diffusion import DiffusionPictures
from langevin.baselines.family import PictureModel
from langevin.baselines.gan import TrainedGan
from langevin.baselines.gan_network import Generator
from langevin.baselines.imagegpt import TrainedImageGpt
from langevin.baselines.imagegpt_network import ImageGpt
from langevin.baselines.pixelcnn import TrainedPixelCnn
from langevin.baselines.pixelcnn_network import PixelCnn
from langevin.baselines.recipes import gan_fashion, imagegpt_fashion, latent_fashion, pixelcnn_fashion
from langevin.diffusion.prediction import Prediction
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.unet import UNet, UNetConfig
from langevin.training.recipes.fashion import ddpm_fashion

STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sampling", "training"))
    parser.add_argument("--sizes", default="8,16,28")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--families", default="gan,latent,diffusion,pixelcnn,imagegpt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    clock = Clock(arguments.clock)
    print(f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {clock} clock")
    if arguments.what == "sampling":
        sampling(
            [int(s) for s in arguments.sizes.split(",")],
            arguments.families.split(","),
            arguments.batch,
            arguments.rounds,
            clock,
        )
    else:
        training(arguments.batch, arguments.rounds, clock)


def sampling(sizes: Sequence[int], families: Sequence[str], batch: int, rounds: int, clock: Clock) -> None:
    print(f"\n| family | {' | '.join(f'{s} x {s}' for s in sizes)} | grows as pixels to the |")
    print(f"|---|{'---|' * (len(sizes) + 1)}")
    for name, make in ((n, m) for n, m in MODELS.items() if n.split()[0].rstrip(",") in families):
        # The latents' U-Net halves its input twice, and nothing is left of less than 4 x 4.
        fits = [s for s in sizes if not name.startswith("latent") or s >= 16]
        models = [make(size) for size in fits]
        for count, words in ((batch, f"batch of {batch}"), (1, "alone")):
            seconds = [_seconds(lambda m=m, n=count: m.sample(range(n)), rounds, clock) / count for m in models]
            cells = " | ".join(["-"] * (len(sizes) - len(fits)) + [f"{s:.3g} s" for s in seconds])
            print(f"| {name}, {words} | {cells} | {_power(fits, seconds):.2f} |", flush=True)


def training(batch: int, rounds: int, clock: Clock) -> None:
    pixels, latent = ddpm_fashion().diffusion.network, latent_fashion()
    codec = AutoencoderKL(latent.autoencoder.network)
    side = 28 // latent.autoencoder.network.factor
    rows = {
        "U-Net on 28 x 28 x 1 pixels": (pixels, 28),
        f"U-Net on {side} x {side} x {latent.diffusion.network.in_channels} latents": (latent.diffusion.network, side),
    }
    print("\n| | parameters | training, s/picture | one evaluation, s/picture |\n|---|---|---|---|")
    costs = []
    for name, (config, size) in rows.items():
        network = UNet(config)
        x, t = torch.randn(batch, config.in_channels, size, size), torch.zeros(batch)
        step = _seconds(lambda n=network, x=x, t=t: _backward(n(x, t)), rounds, clock) / batch
        with torch.no_grad():
            call = _seconds(lambda n=network, x=x, t=t: n(x, t), rounds, clock) / batch
        costs.append((step, call))
        print(f"| {name} | {_count(network):,} | {step:.3g} | {call:.3g} |")
    images = torch.randn(batch, 3, 28, 28)
    step = _seconds(lambda: _backward(codec.decode(codec.moments(images)[0])), rounds, clock) / batch
    z = torch.randn(batch, latent.autoencoder.network.latent_channels, side, side)
    with torch.no_grad():
        encode = _seconds(lambda: codec.moments(images), rounds, clock) / batch
        decode = _seconds(lambda: codec.decode(z), rounds, clock) / batch
    print(f"| autoencoder, both ways | {_count(codec):,} | {step:.3g} | |")
    print(f"| encoding once, decoding once | | {encode:.3g} | {decode:.3g} |")
    print(
        f"\npixels / latents: training {costs[0][0] / costs[1][0]:.1f}, one evaluation {costs[0][1] / costs[1][1]:.1f}"
    )
    whole = STEPS * costs[0][1] / (STEPS * costs[1][1] + decode)
    print(f"a picture of {STEPS} steps, with the decoder: {whole:.1f}")


def _diffusion(size: int) -> PictureModel:
    network = UNet(ddpm_fashion().diffusion.network)
    return DiffusionPictures(
        ModelBundle(
            diffusion=DiffusionModel(network, NoiseSchedule.linear(), Prediction.EPSILON),
            info=CheckpointInfo(prediction=Prediction.EPSILON, default_size=(size, size)),
        ),
        steps=STEPS,
    )


def _latent(size: int) -> PictureModel:
    system = latent_fashion()
    config: UNetConfig = system.diffusion.network
    return DiffusionPictures(
        ModelBundle(
            diffusion=DiffusionModel(UNet(config), NoiseSchedule.scaled_linear(), Prediction.V),
            autoencoder=Autoencoder(AutoencoderKL(system.autoencoder.network), 1.0),
            info=CheckpointInfo(prediction=Prediction.V, default_size=(size, size)),
        ),
        steps=STEPS,
    )


MODELS: dict[str, Callable[[int], PictureModel]] = {
    "gan": lambda s: TrainedGan(Generator(dataclasses.replace(gan_fashion().gan.network, size=s))),
    f"latent diffusion, {STEPS} steps": _latent,
    f"diffusion, {STEPS} steps": _diffusion,
    "pixelcnn": lambda s: TrainedPixelCnn(PixelCnn(dataclasses.replace(pixelcnn_fashion().pixelcnn.network, size=s))),
    "imagegpt": lambda s: TrainedImageGpt(ImageGpt(dataclasses.replace(imagegpt_fashion().imagegpt.network, size=s))),
}


def _seconds(run: Callable[[], object], rounds: int, clock: Clock) -> float:
    """The median; a first run is not counted."""
    run()
    taken = []
    for _ in range(rounds):
        began = clock.now()
        run()
        taken.append(clock.now() - began)
    return statistics.median(taken)


def _backward(output: Tensor) -> None:
    output.square().mean().backward()


def _power(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    if len(sizes) < 2:
        return math.nan
    xs, ys = [2 * math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
