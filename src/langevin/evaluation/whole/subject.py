"""What a whole evaluation works on: a model, a CLIP, the data's two splits, and pictures that are made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from langevin.checkpoints.atomic import atomic_write
from langevin.checkpoints.clip_files import ClipModel
from langevin.diffusion.samplers import SAMPLERS
from langevin.errors import DataError, RequestError
from langevin.evaluation.extractors import OpenExtractor
from langevin.evaluation.features import embed_texts
from langevin.evaluation.generation import generate_pictures
from langevin.evaluation.run import Pictures, Record
from langevin.images.grids import labelled_sheet, save_picture
from langevin.model.bundle import ModelBundle
from langevin.tasks.from_text import completed
from langevin.tasks.manifest import describe
from langevin.tasks.request import GenerateRequest

LEAST = 8
"""Pictures that a set needs before anything is said of it."""
IMAGES = "images"
"""Folder of the plots and sheets, as the page links them."""
SIDE = 96
"""Width and height at which pictures are shown on sheets."""
DECODING = 4
"""What decoding and writing a picture costs, in calls of the denoiser: for the estimate of the time alone."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is made and measured."""

    samples: int = 1000
    """Pictures for the distances and the CLIP score, and real ones on each side; as many as the data allows."""
    sweep_samples: int = 200
    """Pictures for each point of the curves."""
    attributes: int = 200
    """Prompts whose answer is measured."""
    sheet: int = 64
    """Prompts on the sheet, with the seeds from 0 on."""
    samplers: tuple[str, ...] = ("ddim", "dpmpp_2m", "unipc", "dpmpp_2m_sde", "euler_ancestral")
    """`euler` is not among them: in these coordinates it is `ddim`."""
    steps: tuple[int, ...] = (2, 4, 6, 10, 20, 40)
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    seed: int = 0
    batch: int = 16
    """Pictures that go through the networks together."""

    def __post_init__(self) -> None:
        for name, least in (("samples", LEAST), ("sweep_samples", LEAST), ("attributes", 10), ("sheet", 1)):
            if getattr(self, name) < least:
                raise RequestError(f"{name.replace('_', '-')} {getattr(self, name)}: at least {least} are needed")


class Block(NamedTuple):
    """Pictures that are made together, one for each prompt."""

    name: str
    """Of their folder."""
    prompts: tuple[str, ...]
    request: GenerateRequest
    """Sampler, steps and guidance."""
    seed: int
    """Of the first picture; the next has the next."""


class Clock:
    """How long the pictures will take that are still to be made, from how long those of this run took."""

    def __init__(self, work: float, say: Callable[[str], object], now: Callable[[], float] = time.monotonic) -> None:
        self.left = work
        self._say = say
        self._now = now
        self._done = self._spent = 0.0
        self._said = now()

    def made(self, work: float, seconds: float, what: str) -> None:
        """Some pictures were made. Says so now and then, with the time that is left."""
        self.left = max(0.0, self.left - work)
        self._done += work
        self._spent += seconds
        if self._now() - self._said > 20:
            self._said = self._now()
            self._say(f"{what}; about {self.minutes:.0f} min more for pictures")

    @property
    def minutes(self) -> float:
        return self.left * self._spent / self._done / 60 if self._done else 0.0


@dataclass(eq=False, kw_only=True)
class Subject:
    """The model that is evaluated, and all that its parts share.

    train, held_out: real pictures at the model's size; records with `caption` and `style`. The model was trained on
    the first and never saw the names of the second. styles: for each style the words by which prompts ask for it.
    """

    bundle: ModelBundle
    extractor: OpenExtractor
    train: Pictures
    held_out: Pictures
    styles: Mapping[str, Sequence[str]]
    folder: Path
    scale: Scale = field(default_factory=Scale)
    request: GenerateRequest = field(default_factory=lambda: GenerateRequest(prompt=""))
    say: Callable[[str], object] = lambda text: None
    clock: Clock | None = None

    def __post_init__(self) -> None:
        if self.bundle.text is None or self.bundle.autoencoder is None:
            raise RequestError(f"model {self.bundle.info.name} is no text-to-image model of latents: give such a one")
        if self.extractor.clip is None:
            raise RequestError("features of a CLIP with both towers are needed: give a clip.safetensors")
        for name, data in (("training", self.train), ("held-out", self.held_out)):
            if len(data.records) < 2 * LEAST:
                raise DataError(f"{len(data.records)} {name} pictures are too few: at least {2 * LEAST} are needed")
        self._made: dict[str, Tensor] = {}
        self._features: dict[str, Tensor] = {}
        size = self.train.pictures.shape[-1]
        self.request = self.request.changed(width=size, height=size)

    @property
    def clip(self) -> ClipModel:
        assert self.extractor.clip is not None
        return self.extractor.clip

    def settings(self) -> dict[str, Any]:
        """What decides the figures, ready for JSON."""
        request = completed(self.request.changed(seed=0), self.bundle)
        return {
            "model": describe(self.bundle),
            "features": {"name": self.extractor.name, "sha256": self.extractor.sha256},
            "data": {
                "size": self.train.pictures.shape[-1],
                "train": {"pictures": len(self.train.records), "fingerprint": self.train.fingerprint},
                "held_out": {"pictures": len(self.held_out.records), "fingerprint": self.held_out.fingerprint},
            },
            "generation": {
                "sampler": request.sampler,
                "steps": request.steps,
                "guidance": request.guidance,
                "precision": str(self.bundle.diffusion.dtype).removeprefix("torch."),
            },
            "styles": {style: list(words) for style, words in self.styles.items()},
            "scale": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.scale).items()},
        }

    # -- the real pictures ----------------------------------------------------------------------------------------

    @cached_property
    def halves(self) -> tuple[list[int], list[int]]:
        """Training pictures that are compared with (the reference), and as many others, whose captions are drawn."""
        return _halves(len(self.train.records), self.scale.samples, self.scale.seed)

    @cached_property
    def held_out_halves(self) -> tuple[list[int], list[int]]:
        """The same of the held-out pictures."""
        return _halves(len(self.held_out.records), self.scale.samples, self.scale.seed)

    @cached_property
    def train_features(self) -> Tensor:
        """float32 [N, D] of every training picture; kept in the folder."""
        path = self.folder / "train-features.safetensors"
        if path.is_file():
            return load_file(path)["features"]
        self.say(f"features of {len(self.train.records)} training pictures")
        found = self.extractor.views(self.train.pictures).features
        with atomic_write(path) as temporary:
            save_file({"features": found}, temporary)
        return found

    @cached_property
    def held_out_features(self) -> Tensor:
        """float32 [N, D] of every held-out picture."""
        return self.extractor.views(self.held_out.pictures).features

    @cached_property
    def names(self) -> list[str]:
        """The distinct captions of the training pictures, sorted."""
        return sorted({str(record["caption"]) for record in self.train.records})

    @cached_property
    def name_vectors(self) -> Tensor:
        """float32 [len(names), D] of the text tower."""
        return embed_texts(self.clip, self.names)

    def styled(self, record: Record) -> str:
        """A record's name with the words for its style, by which just such a picture is asked for."""
        words = self.styles.get(str(record.get("style")))
        return f"{record['caption']}, {words[0]}" if words else str(record["caption"])

    # -- the model's pictures -------------------------------------------------------------------------------------

    @cached_property
    def known(self) -> Block:
        """Of names that the model was trained on, in the styles in which they occur."""
        return self.block("known", [self.styled(self.train.records[i]) for i in self.halves[1]])

    @cached_property
    def new(self) -> Block:
        """Of names that the model never saw."""
        return self.block("new", [self.styled(self.held_out.records[i]) for i in self.held_out_halves[1]])

    def block(self, name: str, prompts: Sequence[str], request: GenerateRequest | None = None) -> Block:
        """Prompts to be drawn; request: where it differs from the evaluation's."""
        return Block(name, tuple(prompts), request or self.request, self.scale.seed)

    def made(self, block: Block) -> Tensor:
        """The block's pictures, uint8 N 3 H W; those that are in the folder already are not made again."""
        if block.name in self._made:
            return self._made[block.name]
        folder, count = self.folder / "pictures" / block.name, len(block.prompts)
        there = pictures_there(self, block)
        last = [time.perf_counter()]

        def finished(done: int) -> None:
            now = time.perf_counter()
            if self.clock is not None and done > there:
                work = cost(self, block) * min(self.scale.batch, done - there)
                self.clock.made(work, now - last[0], f"{block.name}: {done} of {count} pictures")
            last[0] = now

        records = [{"caption": prompt} for prompt in block.prompts]
        pictures, _ = generate_pictures(
            self.bundle, records, folder, block.request, seed=block.seed, batch=self.scale.batch, finished=finished
        )
        self._made[block.name] = pictures
        return pictures

    def features(self, block: Block) -> Tensor:
        """float32 [N, D] of the block's pictures."""
        if block.name not in self._features:
            self._features[block.name] = self.extractor.views(self.made(block)).features
        return self._features[block.name]

    # -- what is written ------------------------------------------------------------------------------------------

    def image(self, name: str) -> Path:
        """Where a plot or a sheet lies."""
        folder = self.folder / IMAGES
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"evaluation-{name}.png"

    def save_sheet(
        self, name: str, pictures: Sequence[Tensor], labels: Sequence[str], columns: int, rows: int = 3
    ) -> list[str]:
        """Write pictures (uint8 3 H W) with their labels as sheets of so many rows. Returns the sheets' names."""
        names: list[str] = []
        for start in range(0, len(pictures), columns * rows):
            some = slice(start, start + columns * rows)
            images = torch.stack(list(pictures[some])).float() / 127.5 - 1
            names.append(f"{name}-{len(names) + 1}")
            save_picture(self.image(names[-1]), labelled_sheet(images, labels[some], columns, side=SIDE))
        return names


def pictures_there(subject: Subject, block: Block) -> int:
    """How many pictures of a block were made in an earlier run."""
    return len(list((subject.folder / "pictures" / block.name).glob("*.png")))


def cost(subject: Subject, block: Block) -> float:
    """What a picture of a block costs, in calls of the denoiser for one picture."""
    request = completed(block.request.changed(seed=0), subject.bundle)
    calls = SAMPLERS[request.sampler or ""].calls(request.steps or 1)
    return calls * (1 if request.guidance == 1 else 2) + DECODING


def _halves(count: int, samples: int, seed: int) -> tuple[list[int], list[int]]:
    half = min(samples, count // 2)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:half], order[half : 2 * half]
