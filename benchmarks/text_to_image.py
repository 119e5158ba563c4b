"""Langevin and diffusers side by side, alternating in one run: medians, ratios, and how far the results are apart.

    python benchmarks/text_to_image.py process [--rounds 5]
        A fresh process each time: import, load, 20 steps with guidance, save a PNG, with the packaged model;
        diffusers reads the folder that `langevin convert` writes and runs the same solver (DPM-Solver++ 2M).

    python benchmarks/text_to_image.py few [--rounds 5]
        The same in four steps without guidance, by the LoRA `emoji-fast`, with consistency sampling on both sides. Each
        draws its own noise, so the pictures are not compared.

    python benchmarks/text_to_image.py step [--rounds 3] [--dtype float32] [--size 512]
        One guided call (two images) of a U-Net of Stable Diffusion 1.5's shape with random weights, the same in both.

Needs the `test` extra. Run it on a machine that does nothing else; the hardware is printed with the figures.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import langevin

PROMPT = "a red apple"

DIFFUSERS = """
import sys
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline
folder, prompt, picture, size, lora = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(
    folder, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
)
if lora:
    pipe.load_lora_weights(lora)
    pipe.scheduler, steps, guidance = LCMScheduler.from_config(pipe.scheduler.config), 4, 1.0
else:
    scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.scheduler, steps, guidance = scheduler, 20, 4.0
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator("cpu").manual_seed(0)
image = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, width=int(size), height=int(size),
             generator=generator).images[0]
image.save(picture)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("process", "few", "step"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    print(hardware())
    if arguments.what == "process":
        whole_process(arguments.rounds)
    elif arguments.what == "few":
        whole_process(arguments.rounds, few=True)
    else:
        one_step(arguments.rounds, arguments.dtype, arguments.size)


def hardware() -> str:
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.2f}; torch "
        f"{torch.__version__}, langevin {langevin.__version__}"
    )


def alternate(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Print medians and the median of the round-by-round ratios; one unmeasured round first."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    a, b = ([p[i] for p in pairs] for i in (0, 1))
    ratio = statistics.median(x / y for x, y in pairs)
    print(f"langevin   median {statistics.median(a):.3f} s  ({min(a):.3f} ... {max(a):.3f})")
    print(f"diffusers  median {statistics.median(b):.3f} s  ({min(b):.3f} ... {max(b):.3f})")
    print(f"ratio langevin / diffusers {ratio:.3f}, {rounds} rounds")


def whole_process(rounds: int, *, few: bool = False) -> None:
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = Path(langevin.__file__).parent / "data"
        model, lora = data / "emoji.safetensors", data / "emoji-fast.safetensors" if few else ""
        subprocess.run(
            [sys.executable, "-m", "langevin", "convert", model, folder / "model", "--to", "diffusers"], check=True
        )
        size = langevin.load(str(model)).info.default_size[0]
        script = folder / "peer.py"
        script.write_text(DIFFUSERS)

        def timed(*command: object) -> float:
            began = time.perf_counter()
            subprocess.run([str(c) for c in command], check=True, capture_output=True)
            return time.perf_counter() - began

        how = ("--lora", lora) if few else ("--steps", 20, "--guidance", 4)  # the LoRA brings its own steps
        alternate(
            rounds,
            lambda: timed(sys.executable, "-m", "langevin", "generate", PROMPT, "--model", model, "--seed", 0, *how,
                          "-o", folder / "ours.png"),
            lambda: timed(sys.executable, script, folder / "model", PROMPT, folder / "theirs.png", size, lora),
        )  # fmt: skip
        if few:
            return
        a, b = (np.asarray(Image.open(folder / n).convert("RGB")).astype(int) for n in ("ours.png", "theirs.png"))
        print(f"the two pictures differ by {np.abs(a - b).max()} of 255 at most, {np.abs(a - b).mean():.3f} on average")


def one_step(rounds: int, dtype_name: str, size: int) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from langevin.checkpoints.places import diffusers_unet
    from langevin.networks.unet import UNet, UNetConfig

    dtype = getattr(torch, dtype_name)
    config = UNetConfig()
    torch.manual_seed(0)
    ours = UNet(config)
    with torch.no_grad():
        for parameter in ours.parameters():  # layers that start at zero would hide differences
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    state = ours.state_dict()
    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )
    renamed = {place.name: state[name] for name, place in diffusers_unet(state, config).items()}
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: v.reshape(shapes[name]) for name, v in renamed.items()}, assign=True)
    ours, theirs = ours.to(dtype).eval(), theirs.to(dtype).eval()
    z = torch.randn(2, 4, size // 8, size // 8, dtype=dtype)
    context = torch.randn(2, 77, 768, dtype=dtype)
    t = torch.tensor([500.0, 500.0])
    results = {}

    @torch.no_grad()
    def run_ours() -> float:
        began = time.perf_counter()
        results["ours"] = ours(z, t, context=context)
        return time.perf_counter() - began

    @torch.no_grad()
    def run_theirs() -> float:
        began = time.perf_counter()
        results["theirs"] = theirs(z, t, encoder_hidden_states=context).sample
        return time.perf_counter() - began

    print(f"U-Net of Stable Diffusion 1.5's shape, {dtype_name}, {size} x {size} pixels, two images")
    alternate(rounds, run_ours, run_theirs)
    difference = (results["ours"].float() - results["theirs"].float()).abs().max()
    print(f"outputs differ by {float(difference):.2g} at most (their std {float(results['theirs'].float().std()):.2g})")


if __name__ == "__main__":
    main()
