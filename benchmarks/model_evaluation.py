"""The whole evaluation of a text-to-image model on captioned emoji: docs/model-evaluation.md is what it writes.

    python benchmarks/model_evaluation.py MODEL --data FOLDER --clip RUN-OR-FILE --out FOLDER [--samples N]

Compared with are the pictures that the recipe `emoji-128` trains its denoiser on, and those of the same kinds in the
data's split `val`. Into --out go a page (model-evaluation.md), its plots and sheets (images/), report.json, and every
picture that was made. Each part is kept when it is done and pictures are kept in blocks: a run that was stopped goes
on. Whoever wants it quick gives small numbers: `--samples 200 --sweep-samples 24 --attributes 100`; the page says how
many they were.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import langevin
from langevin.errors import LangevinError
from langevin.evaluation.extractors import open_extractor
from langevin.evaluation.whole.run import PAGE, PARTS, evaluate_whole
from langevin.evaluation.whole.subject import Scale, Subject
from langevin.tasks.request import GenerateRequest
from langevin.training.data import PictureSet, read_data
from langevin.training.plots import check_plotting
from langevin.training.recipes.emoji_128 import DRAWN, drawings


def main() -> None:
    scale = Scale()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="weights, or `packaged` for the model inside the package")
    parser.add_argument("--data", type=Path, required=True, help="captioned emoji with the splits train and val")
    parser.add_argument("--clip", required=True, help="a clip.safetensors, or a training run's folder that holds one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--samples", type=int, default=scale.samples, help="pictures for distances and CLIP score")
    parser.add_argument("--sweep-samples", type=int, default=scale.sweep_samples, help="pictures a point of the curves")
    parser.add_argument("--attributes", type=int, default=scale.attributes, help="prompts whose answer is measured")
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=scale.batch, help="pictures that go through the networks together")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    arguments = parser.parse_args()
    check_plotting()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    place = None if arguments.model == "packaged" else arguments.model
    bundle = langevin.load(place, device=arguments.device, dtype=arguments.dtype).bundle
    size = bundle.info.default_size[0]

    def split(name: str) -> PictureSet:
        return read_data(arguments.data, drawings(split=(name,)).model_copy(update={"size": size}))

    asked = {"sampler": arguments.sampler, "steps": arguments.steps, "guidance": arguments.guidance}
    subject = Subject(
        bundle=bundle,
        extractor=open_extractor(f"clip={arguments.clip}", device=arguments.device),
        train=split("train"),
        held_out=split("val"),
        styles=DRAWN,
        folder=arguments.out,
        scale=Scale(
            samples=arguments.samples, sweep_samples=arguments.sweep_samples, attributes=arguments.attributes,
            seed=arguments.seed, batch=arguments.batch,
        ),
        request=GenerateRequest(prompt="", **{k: v for k, v in asked.items() if v is not None}),
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    evaluate_whole(subject, arguments.parts, command=_command(arguments))
    print(f"wrote {arguments.out / PAGE}")


def _command(arguments: argparse.Namespace) -> str:
    """As it may be typed again, without the folders of this machine."""
    words = ["python benchmarks/model_evaluation.py MODEL --data FOLDER --clip RUN --out FOLDER"]
    words += [
        f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in ("samples", "sweep_samples", "attributes")
    ]
    words += [
        f"--{name} {value}"
        for name in ("sampler", "steps", "guidance", "seed", "dtype")
        if (value := getattr(arguments, name))
    ]
    return " ".join(words)


if __name__ == "__main__":
    try:
        main()
    except LangevinError as error:
        sys.exit(f"error: {error}")
