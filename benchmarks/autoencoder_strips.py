"""Decoding and encoding in strips against the whole: difference, peak memory, processor time.

    python benchmarks/autoencoder_strips.py --size 1024 --width 128

Random weights. Each of the four runs in a process of its own, whose largest resident memory is measured less what it
held before; the results are then compared.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from langevin.model.autoencoder import Autoencoder
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL


def peak() -> int:
    """Bytes: the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def work(direction: str, in_strips: bool, size: int, width: int, target: Path) -> None:
    torch.manual_seed(0)
    codec = Autoencoder(AutoencoderKL(AutoencoderConfig(base_channels=width)).eval(), in_strips=in_strips)
    f = codec.downsampling
    given = torch.randn(1, 4, size // f, size // f) if direction == "decode" else 2 * torch.rand(1, 3, size, size) - 1
    before, start = peak(), time.process_time()
    result = codec.decode(given) if direction == "decode" else codec.encode(given)
    seconds = time.process_time() - start
    print(f"{(peak() - before) / 2**20:.0f} {seconds:.1f}")
    torch.save(result, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="width and height of the picture")
    parser.add_argument("--width", type=int, default=128, help="channels of the first level; 128 in Stable Diffusion")
    parser.add_argument("--direction", choices=("decode", "encode"), help="one of the two alone")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        direction, strips, target = options.work
        work(direction, strips == "strips", options.size, options.width, Path(target))
        return
    for direction in [options.direction] if options.direction else ["decode", "encode"]:
        with tempfile.TemporaryDirectory() as folder:
            results = []
            for how in ("whole", "strips"):
                target = Path(folder) / how
                command = [sys.executable, __file__, "--size", str(options.size), "--width", str(options.width)]
                done = subprocess.run(
                    [*command, "--work", direction, how, str(target)], check=True, capture_output=True, text=True
                )
                memory, seconds = done.stdout.split()
                print(f"{direction} {how}: {memory} MiB at most, {seconds} s of processor time")
                results.append(torch.load(target, weights_only=True))
        whole, strips = results
        print(f"{direction}: largest difference {(whole - strips).abs().max():.2g}, deviation {whole.std():.2g}")


if __name__ == "__main__":
    main()
