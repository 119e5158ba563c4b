"""Training steps of U-Nets of equal size side by side: images/s, and the share of the machine's matrix peak.

    python benchmarks/training_step.py pixels [--rounds 5] [--batch 16] [--dtype float32] [--threads N]
        The U-Net of DDPM on CIFAR-10 (Ho et al. 2020), 32 x 32 pixels, beside diffusers' UNet2DModel of the same
        architecture and denoising-diffusion-pytorch's Unet with its own blocks at the same widths.

    python benchmarks/training_step.py latents [...]
        The emoji recipe's denoiser, latents of 16 x 16 with 77 text states, beside diffusers' UNet2DConditionModel of
        the same architecture; denoising-diffusion-pytorch has no text conditioning.

A step is the forward pass, the mean squared error, the backward pass, clipping and AdamW, the same for all, on the CPU;
bfloat16 is autocast. Floating-point operations are those of the forward and the backward pass as
torch.utils.flop_counter counts them; the peak is what a large matrix product or a large convolution reaches in the same
dtype with the same threads, whichever is faster. All alternate within one process, after one unmeasured round.

Needs the `test` extra. denoising-diffusion-pytorch takes part where it can be imported: it needs einops and ema-pytorch
beside it, `pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch`. Run it on a machine that does nothing
else; the hardware is printed with the figures. Where it does other things too, `--clock cpu --threads 1` counts the
processor time of the one thread instead of the time that passes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import torch.nn.functional as F
from text_to_image import hardware
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from langevin.networks.unet import UNet, UNetConfig
from langevin.training.recipes.emoji import emoji

Call = Callable[[Tensor, Tensor], Tensor]
Clock = Callable[[], float]


class Contestant:
    """One network with its optimiser; `step` trains it once."""

    def __init__(self, name: str, network: nn.Module, call: Call, dtype: torch.dtype) -> None:
        self.name = name
        self.network = network.train()
        self.call = call
        self.dtype = dtype
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        self.seconds: list[float] = []

    def step(self, z: Tensor, t: Tensor, target: Tensor, clock: Clock) -> float:
        """Seconds that one step takes."""
        began = clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output = self.call(z, t)
        self.optimizer.zero_grad(set_to_none=True)
        F.mse_loss(output.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return clock() - began

    def flops(self, z: Tensor, t: Tensor, target: Tensor) -> int:
        """Of one forward and backward pass, attention as plain matrix products."""
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            F.mse_loss(self.call(z, t), target).backward()
        self.optimizer.zero_grad(set_to_none=True)
        return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pixels", "latents"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu adds up the time of all threads: give --threads 1")
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{hardware()}; {arguments.what}, {arguments.dtype}, {arguments.clock} clock")
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    channels, side = (3, 32) if arguments.what == "pixels" else (4, 16)
    z, target = torch.randn(2, arguments.batch, channels, side, side)
    t = torch.randint(1000, (arguments.batch,)).float()
    contestants = (pixels if arguments.what == "pixels" else latents)(arguments.batch, dtype)
    flops = {c.name: c.flops(z, t, target) for c in contestants}
    peaks: list[dict[str, float]] = []
    for number in range(arguments.rounds + 1):
        for contestant in contestants:
            seconds = contestant.step(z, t, target, clock)
            if number:
                contestant.seconds.append(seconds)
        if number:
            peaks.append(peak_flops(dtype, clock))
    report(contestants, flops, peaks, arguments.batch)


def report(contestants: list[Contestant], flops: dict[str, int], peaks: list[dict[str, float]], batch: int) -> None:
    best = {name: max(p[name] for p in peaks) for name in peaks[0]}
    peak = max(best.values())
    words = ", ".join(f"{name} {value / 1e9:.1f} GFLOP/s" for name, value in best.items())
    print(f"{words}; {len(contestants[0].seconds)} rounds, batch {batch}")
    ours = contestants[0]
    for c in contestants:
        median = statistics.median(c.seconds)
        ratio = statistics.median(a / b for a, b in zip(ours.seconds, c.seconds, strict=True))
        parameters = sum(p.numel() for p in c.network.parameters())
        print(
            f"{c.name}: {parameters / 1e6:.2f} M parameters, {flops[c.name] / batch / 1e9:.3f} GFLOP an image; step "
            f"{median:.3f} s ({min(c.seconds):.3f} ... {max(c.seconds):.3f}), {batch / median:.2f} images/s, "
            f"{flops[c.name] / median / peak:.1%} of the peak; langevin's seconds are {ratio:.3f} of its"
        )


def peak_flops(dtype: torch.dtype, clock: Clock) -> dict[str, float]:
    """Operations a second, the best of several tries, of square matrix products and of a convolution."""
    best = {"matrix product": 0.0, "3 x 3 convolution": 0.0}
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    image, kernel = torch.randn(4, 256, 32, 32).to(dtype), torch.randn(256, 256, 3, 3).to(dtype)
    tries: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "matrix product": (2 * 1024**3, lambda: torch.mm(a, b)),
        "3 x 3 convolution": (2 * 4 * 32 * 32 * 256 * 256 * 9, lambda: F.conv2d(image, kernel, padding=1)),
    }
    for name, (operations, run) in tries.items():
        for _ in range(4):
            began = clock()
            run()
            best[name] = max(best[name], operations / (clock() - began))
    return best


def langevin_unet(config: UNetConfig, context: Tensor | None, dtype: torch.dtype) -> Contestant:
    network = UNet(config)

    def call(z: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(z, t, context=context)
        return out

    return Contestant("langevin", network, call, dtype)


def pixels(batch: int, dtype: torch.dtype) -> list[Contestant]:
    from diffusers import UNet2DModel

    config = UNetConfig(
        in_channels=3, out_channels=3, model_channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=2,
        attention_levels=(False, True, False, False), num_heads=1, context_channels=None,
    )  # fmt: skip
    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=256,
    )
    found = [
        langevin_unet(config, None, dtype),
        Contestant("diffusers UNet2DModel", theirs, lambda z, t: theirs(z, t).sample, dtype),
    ]
    if (peer := denoising_diffusion_pytorch()) is not None:
        unet = peer(
            dim=128, dim_mults=(1, 2, 2, 2), full_attn=(False, True, False, False), attn_heads=1, attn_dim_head=256
        )
        found.append(Contestant("denoising-diffusion-pytorch Unet", unet, unet, dtype))
    return found


def latents(batch: int, dtype: torch.dtype) -> list[Contestant]:
    from diffusers import UNet2DConditionModel

    config = emoji().diffusion.network
    widths = tuple(config.model_channels * m for m in config.channel_mult)
    context = torch.randn(batch, 77, config.context_channels or 0)
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels)
    theirs = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=widths,
        layers_per_block=config.num_res_blocks,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=config.context_channels or 0,
        # Its name says channels of a head; it is the number of heads.
        attention_head_dim=tuple(max(1, width // (config.head_channels or width)) for width in widths),
        use_linear_projection=config.linear_projection,
    )
    return [
        langevin_unet(config, context, dtype),
        Contestant(
            "diffusers UNet2DConditionModel",
            theirs,
            lambda z, t: theirs(z, t, encoder_hidden_states=context).sample,
            dtype,
        ),
    ]


def denoising_diffusion_pytorch() -> Any:
    """The peer's Unet, None where it is not installed.

    Its package imports torchvision and pytorch-fid for its data set and its evaluation. A training step uses neither:
    stand-ins serve while it is imported, in this benchmark alone.
    """
    modules = ("torchvision", "pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception")
    try:
        with patch.dict(sys.modules, {name: MagicMock() for name in modules}):
            from denoising_diffusion_pytorch import Unet
    except ImportError as error:
        print(f"denoising-diffusion-pytorch takes no part: {error}")
        return None
    return Unet


if __name__ == "__main__":
    main()
