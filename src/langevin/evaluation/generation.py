"""Many pictures of a model for measuring: one for each record, kept on disk so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from langevin.checkpoints.atomic import atomic_write
from langevin.diffusion.guidance import clipped
from langevin.diffusion.noise import SEED_LIMIT, Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.errors import NotFiniteError, RequestError
from langevin.images.pixels import open_picture, to_pictures, to_rgb
from langevin.images.pixels import to_tensor as picture_tensor
from langevin.model.bundle import ModelBundle
from langevin.model.conditioning import Conditioning
from langevin.model.guided import guided_model
from langevin.networks.unet import UNetConfig
from langevin.tasks.from_text import completed, run_numbers, sampler_options
from langevin.tasks.manifest import describe
from langevin.tasks.request import GenerateRequest

PAPERS = "generation.json"
"""In the folder of pictures: what they were made with."""
RECORDS = "metadata.jsonl"
"""In the folder of pictures once all are there: their records, which make a data set of it."""

Record = Mapping[str, Any]


def told(bundle: ModelBundle) -> str:
    """What the model is told of a picture: "captions", "classes" or "nothing".

    Raises RequestError for a model that needs more than these.
    """
    config = network_config(bundle)
    if bundle.info.task in ("inpainting", "depth", "upscaling"):
        raise RequestError(f"model {bundle.info.name} is for {bundle.info.task}: only whole pictures are measured")
    if bundle.text is not None:
        return "captions"
    if config.context_channels is not None:
        raise RequestError(f"model {bundle.info.name} takes texts and has no text encoder: give a whole model")
    return "classes" if config.num_classes is not None else "nothing"


def network_config(bundle: ModelBundle) -> UNetConfig:
    """What shapes the bundle's U-Net."""
    return cast(UNetConfig, bundle.diffusion.network.config)


def classes_of(bundle: ModelBundle) -> tuple[int, int | None]:
    """How many classes a model knows, and the label of no class where it has one: it comes after all others."""
    labels = network_config(bundle).num_classes or 0
    named = len(bundle.classes) or labels
    return named, named if labels > named else None


def generate_pictures(
    bundle: ModelBundle,
    records: Sequence[Record],
    folder: Path,
    request: GenerateRequest,
    *,
    seed: int,
    batch: int,
    finished: Callable[[int], object] = lambda done: None,
) -> tuple[Tensor, dict[str, Any]]:
    """A picture for each record, as `folder/00000000.png` ...; uint8 N 3 H W, and what they were made with.

    Picture i has the seed `seed + i` and record i's `caption` (taken literally, cut at the text network's window) or
    `label`. request: steps, sampler, schedule, guidance, width, height; its prompt and seeds are not used. Pictures go
    through the networks in blocks of `batch`, the same ones however often the run is stopped: a block of which all
    pictures are there is not made again. `finished` is called with the number of pictures that are there.

    Raises RequestError where the folder holds pictures that were made otherwise, where a record lacks what the model
    is told, and for options that do not fit the model; NotFiniteError where the weights are broken.
    """
    request = completed(request.changed(seed=seed), bundle)
    papers = _papers(bundle, records, request, seed, batch)
    _check_folder(folder, papers)
    make = _Maker(bundle, request)
    pictures: list[Tensor] = []
    for start in range(0, len(records), batch):
        block = range(start, min(start + batch, len(records)))
        paths = [folder / f"{i:08d}.png" for i in block]
        if not all(path.is_file() for path in paths):
            made = make([records[i] for i in block], [(seed + i) % SEED_LIMIT for i in block])
            for path, picture in zip(paths, made, strict=True):
                _save(path, picture)
        pictures += [_read(path) for path in paths]
        finished(block.stop)
    lines = [json.dumps({"file_name": f"{i:08d}.png", **record}) for i, record in enumerate(records)]
    with atomic_write(folder / RECORDS) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return torch.cat(pictures), papers


class _Maker:
    """Makes pictures, one block at a time."""

    def __init__(self, bundle: ModelBundle, request: GenerateRequest) -> None:
        self.bundle = bundle
        self.request = request
        self.told = told(bundle)
        self.scale = 1.0 if request.guidance is None else request.guidance
        unguided = self.told == "nothing" or (self.told == "classes" and classes_of(bundle)[1] is None)
        if unguided and self.scale != 1:
            raise RequestError(f"guidance {self.scale:g}: the model was not trained without what it is told, give 1")
        self.numbers = run_numbers(bundle.diffusion, request)
        self.options = sampler_options(request, self.numbers)
        self.diffusion = replace(bundle.diffusion, times=self.numbers.times)
        width, height = request.width or 0, request.height or 0
        f = bundle.autoencoder.downsampling if bundle.autoencoder else 1
        if width % f or height % f:
            raise RequestError(f"{width} x {height} pixels: this model makes sizes that are multiples of {f}")
        channels = bundle.autoencoder.latent_channels if bundle.autoencoder else network_config(bundle).in_channels
        self.shape = (channels, height // f, width // f)

    @torch.no_grad()
    def __call__(self, records: Sequence[Record], seeds: Sequence[int]) -> list[Image.Image]:
        """8-bit RGB pictures."""
        numbers = self.numbers
        noise = Noise(
            seeds,
            self.shape,
            device=self.diffusion.device,
            interval=numbers.interval_noise,
            step_seed_offset=numbers.step_seed_offset,
        )
        cond, uncond = self._conditionings(records)
        denoiser = guided_model(
            self.diffusion, cond, uncond, self.scale, self.request.rescale, self.request.guidance_interval or (0, 1e9)
        )
        if self.bundle.autoencoder is None:  # pixels lie in [-1, 1], as generating says of every estimate too
            denoiser = clipped(denoiser)
        x = noise.initial() * numbers.prior_scale
        for step in SAMPLERS[numbers.sampler].function(denoiser, x, numbers.sigmas, noise, **self.options):
            x = step.x
        x = x * numbers.final_scale
        images = self.bundle.autoencoder.decode(x) if self.bundle.autoencoder else x
        if not bool(images.isfinite().all()):
            raise NotFiniteError(f"the model gave NaN or infinity for the seeds {seeds[0]} to {seeds[-1]}")
        return to_pictures(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)

    def _conditionings(self, records: Sequence[Record]) -> tuple[Conditioning, Conditioning]:
        if self.told == "nothing":
            return Conditioning(), Conditioning()
        device = self.diffusion.device
        if self.told == "classes":
            classes, nothing = classes_of(self.bundle)
            labels = torch.tensor([label_of(record, classes) for record in records], device=device)
            return Conditioning(labels=labels), Conditioning(labels=torch.tensor([nothing or 0], device=device))
        text = self.bundle.text
        assert text is not None
        captions = [str(record["caption"]) for record in records]
        options = {"clip_skip": self.request.clip_skip, "weighting": "none", "long": "truncate"}
        like = next(self.diffusion.network.parameters())
        both = text.encode([*captions, self.request.negative], **options).context.to(like)  # type: ignore[arg-type]
        return Conditioning(context=both[:-1]), Conditioning(context=both[-1:])


def label_of(record: Record, classes: int) -> int:
    """A record's class. RequestError where it has none that the model knows."""
    label = record.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        raise RequestError(
            f"the model is told one of {classes} classes, a record of the data has label {label!r}: give labelled data"
        )
    return label


def _papers(
    bundle: ModelBundle, records: Sequence[Record], request: GenerateRequest, seed: int, batch: int
) -> dict[str, Any]:
    """What decides the pictures, ready for JSON; of the records their SHA-256."""
    kept = request.model_dump(mode="json", exclude={"prompt", "seed", "seeds", "count", "mode", "batch_size", "long"})
    return {
        "model": describe(bundle),
        "told": told(bundle),
        "request": {**kept, "weighting": "none"},
        "seed": seed,
        "batch": batch,
        "samples": len(records),
        "records": hashlib.sha256(json.dumps([dict(r) for r in records]).encode()).hexdigest(),
    }


def _check_folder(folder: Path, papers: dict[str, Any]) -> None:
    """RequestError where the folder holds other pictures, or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = json.loads((folder / PAPERS).read_text()) if (folder / PAPERS).is_file() else None
        if there is None and any(folder.glob("*.png")):
            raise RequestError(f"{folder} holds pictures of unknown origin: give another --out")
        if there is None:
            with atomic_write(folder / PAPERS) as temporary:
                temporary.write_text(json.dumps(papers, indent=1))
            return
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} cannot be used for the pictures ({error}): give another --out") from None
    for name, value in papers.items():
        if there.get(name) != value:
            raise RequestError(
                f"{folder} holds pictures that were made with another {name}: give the same options to go on with "
                "them, or another --out"
            )


def _save(path: Path, picture: Image.Image) -> None:
    try:
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}; what is there stays") from None


def _read(path: Path) -> Tensor:
    """uint8 1 3 H W: what is measured is what lies on disk."""
    return ((picture_tensor(to_rgb(open_picture(path))) + 1) * 127.5).round().to(torch.uint8)
