"""What the distances between sets give where there is nothing to find: the table in docs/evaluation.md.

    python benchmarks/metric_floors.py [--seed 0]

Two sets of unit Gaussians of width D, N samples each; means over 10 pairs of sets, 3 pairs from N = 3000 on. Defaults
of the functions, but 20 subsets of at most 1000 for the kernel distance. Minutes on one core.
"""

from __future__ import annotations

import argparse

import torch

from langevin.evaluation.distances import density_coverage, frechet_distance, kernel_distance, precision_recall

SIZES = {16: (100, 300, 1000, 3000, 10000), 64: (100, 300, 1000, 3000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    generator = torch.Generator().manual_seed(parser.parse_args().seed)
    print("| D | N | Frechet | kernel | precision | recall | density | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    for width, counts in SIZES.items():
        for count in counts:
            rows = torch.tensor([figures(width, count, generator, k) for k in range(3 if count >= 3000 else 10)])
            frechet, kernel, *shares = rows.mean(0).tolist()
            cells = [f"{frechet:.3f}", f"{kernel:.3f}", *(f"{share:.2f}" for share in shares)]
            print(f"| {width} | {count} | {' | '.join(cells)} |", flush=True)


def figures(width: int, count: int, generator: torch.Generator, seed: int) -> list[float]:
    """Frechet distance, kernel distance, precision, recall, density, coverage of one pair of sets."""
    a, b = (torch.randn(count, width, generator=generator) for _ in range(2))
    kernel = kernel_distance(a, b, subsets=20, subset_size=min(1000, count), seed=seed)
    shares = [*precision_recall(a, b), *density_coverage(a, b)]
    return [frechet_distance(a, b), kernel.mean, *shares]


if __name__ == "__main__":
    main()
