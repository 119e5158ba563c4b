"""Makes a picture again from its manifest.

A manifest says which task made the picture ("task") and names the pictures that the task was given, each by its role,
the name of its file and a hash of its pixels ("inputs"). `TASKS` says for each task what its request is and how it is
planned again. A task joins in by one line there:

    "depth": Task(DepthRequest, lambda bundle, request, given: depth_to_image(bundle, given["image"], request)),

provided that its plan's record holds `"task": "depth"`, that its setup names its `inputs`, that everything else it was
told is in the request, and that planning a completed request once more changes nothing. `given` holds the inputs by
their roles, found again and compared with their hashes; one that there need not have been is asked for by `given.get`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from langevin.checkpoints.steering import add_ip_adapter, add_steering
from langevin.errors import CheckpointError, DataError, RequestError
from langevin.images.png import pixels_sha256
from langevin.model.bundle import ModelBundle, SourceFile
from langevin.tasks.control_request import ControlRequest, DepthRequest, SemanticRequest
from langevin.tasks.controlling import control
from langevin.tasks.editing import edit
from langevin.tasks.from_picture import image_to_image
from langevin.tasks.from_text import text_to_image
from langevin.tasks.image_requests import ImageToImageRequest, InpaintRequest, OutpaintRequest
from langevin.tasks.inpainting import inpaint
from langevin.tasks.inversion import regenerate_picture
from langevin.tasks.inversion_request import EditRequest, RegenerateRequest
from langevin.tasks.large_requests import LargeRequest, UpscaleRequest
from langevin.tasks.mapped import depth_to_image, semantic_to_image
from langevin.tasks.opening import open_bundle
from langevin.tasks.options import show
from langevin.tasks.outpainting import outpaint
from langevin.tasks.pictures import read_input
from langevin.tasks.plan import Plan
from langevin.tasks.request import GenerateRequest, ModelOptions
from langevin.tasks.runner import Run, run
from langevin.tasks.setup import Input
from langevin.tasks.two_passes import large
from langevin.tasks.upscaling import upscale

R = TypeVar("R", bound=GenerateRequest)


@dataclass(frozen=True)
class Task(Generic[R]):
    """How a task's pictures are made again."""

    request: type[R]
    plan: Callable[[ModelBundle, R, Mapping[str, Input]], Plan]


_TEXT = Task(GenerateRequest, lambda bundle, request, given: text_to_image(bundle, request))

TASKS: Mapping[str, Task[Any]] = {
    "text-to-image": _TEXT,
    "class-to-image": _TEXT,
    "unconditional": _TEXT,
    "image-to-image": Task(
        ImageToImageRequest, lambda bundle, request, given: image_to_image(bundle, given["image"], request)
    ),
    "control": Task(
        ControlRequest,
        lambda bundle, request, given: control(
            bundle,
            [given[f"control {i}"] for i in range(len(request.controls))],
            request,
            image=given.get("image"),
            prompts=[given[f"image prompt {i}"] for i in range(len(request.image_strengths))],
        ),
    ),
    "depth-to-image": Task(
        DepthRequest,
        lambda bundle, request, given: depth_to_image(bundle, given["depth"], request, image=given.get("image")),
    ),
    "semantic-to-image": Task(
        SemanticRequest,
        lambda bundle, request, given: semantic_to_image(bundle, given["map"], request, image=given.get("image")),
    ),
    "edit": Task(EditRequest, lambda bundle, request, given: edit(bundle, given["image"], request)),
    "regenerate": Task(
        RegenerateRequest, lambda bundle, request, given: regenerate_picture(bundle, given["image"], request)
    ),
    "upscaling": Task(UpscaleRequest, lambda bundle, request, given: upscale(bundle, given["image"], request)),
    "large": Task(LargeRequest, lambda bundle, request, given: large(bundle, request)),
    "inpainting": Task(
        InpaintRequest,
        lambda bundle, request, given: inpaint(bundle, given["image"], request, mask=given.get("mask")),
    ),
    "outpainting": Task(OutpaintRequest, lambda bundle, request, given: outpaint(bundle, given["image"], request)),
}
"""By the manifest's "task"."""


class Inputs(dict[str, Input]):
    """What a picture was made from, by role. One that is asked for and not there raises DataError."""

    def __missing__(self, role: str) -> Input:
        raise DataError(f"the manifest is malformed: it does not name the {role} that the picture was made from")


@dataclass(frozen=True)
class Named:
    """An input as a manifest names it."""

    role: str
    name: str | None
    """None: it was never a file."""
    pixels_sha256: str

    def find(self, folder: Path) -> Input:
        """Reads it from a folder. Raises DataError where it is not there, or is another picture."""
        if self.name is None:
            raise DataError(f"the picture's {self.role} was given without a file: it can only be made again in Python")
        path = folder / self.name
        if not path.exists():
            raise DataError(f"the picture's {self.role}, {self.name}, is not in {folder}: say where with --inputs")
        found = read_input(self.role, path)
        if (sha256 := pixels_sha256(found.picture)) != self.pixels_sha256:
            raise DataError(
                f"{path} is not the {self.role} that the picture was made from: its pixels have SHA-256 "
                f"{sha256[:16]}..., not {self.pixels_sha256[:16]}...; say where the right one is with --inputs"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a manifest says about making its picture, checked like any request."""

    task: Task[Any]
    request: GenerateRequest
    inputs: tuple[Named, ...]
    """The pictures that it was made from."""
    model: ModelOptions
    steering: tuple[str, ...]
    """The files that its hints acted through, in order."""
    prompters: tuple[tuple[str, str], ...]
    """The file of each IP-Adapter and that of its image encoder, in order."""
    index: int
    """Which of the request's pictures it is."""
    pixels_sha256: str
    files: tuple[str, ...]
    """SHA-256 of every weight file, sorted."""
    threads: int
    """How many threads torch ran with: on a CPU the last bits of a sum may depend on it."""
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        manifest: Mapping[str, Any],
        model: str | None = None,
        *,
        config: str | None = None,
        allow_pickle: bool = False,
        additions: Path = Path(),
    ) -> Recipe:
        """Reads a manifest. `model` says where the weights are, in place of what the manifest says; `additions` is the
        folder that LoRA, embedding, autoencoder and ControlNet files are in; others are looked for by name in
        $LANGEVIN_MODELS.

        Raises DataError where the manifest lacks something or is malformed, RequestError where its options are out of
        bounds.
        """
        try:
            picture, source, versions = manifest["picture"], manifest["model"], manifest["versions"]
            # Pictures that were made before models could have additions do not say that there are none.
            listed = source.get("additions", [])
            added = {kind: [a for a in listed if a["kind"] == kind] for kind in ("lora", "embedding", "vae")}
            name = str(manifest["task"])
            if name not in TASKS:
                raise DataError(f"the picture is of task {show(name)}: pictures of {', '.join(TASKS)} are made again")
            request = TASKS[name].request(**manifest["request"])
            count = len(request.image_seeds())
            index = int(picture["index"]) if request.mode == "fast" else 0
            if not 0 <= index < count:
                raise DataError(f"the manifest is of picture {index}, its request makes {count}")
            return cls(
                task=TASKS[name],
                request=request,
                inputs=tuple(
                    Named(
                        str(given["role"]),
                        # A manifest names files, not places: whatever it says, nothing outside the folder is read.
                        None if given["name"] is None else Path(str(given["name"])).name,
                        str(given["pixels_sha256"]),
                    )
                    for given in manifest.get("inputs", [])
                ),
                model=ModelOptions(
                    model=model or _whereabouts(source),
                    dtype=manifest["precision"],
                    device=manifest["device"],
                    revision=source["revision"] if model is None else None,
                    prediction=source["prediction"],
                    config=config,
                    ema="yes" if source["weights"] == "ema" else "auto",
                    allow_pickle=allow_pickle,
                    vae=next((_place(additions, a) for a in added["vae"]), None),
                    lora=tuple(f"{_place(additions, a)}:{float(a['strength'])!r}" for a in added["lora"]),
                    embedding=tuple(f"{_place(additions, a)}:{a['word']}" for a in added["embedding"]),
                ),
                steering=tuple(_place(additions, a) for a in listed if a["kind"] in ("controlnet", "t2i-adapter")),
                prompters=tuple(
                    (_place(additions, a), _place(additions, before))
                    for before, a in pairwise(listed)
                    if a["kind"] == "ip-adapter"
                ),
                index=index,
                pixels_sha256=str(picture["pixels_sha256"]),
                files=tuple(sorted(str(file["sha256"]) for file in [*source["files"], *listed])),
                threads=int(versions["threads"]),
                versions={name: str(versions[name]) for name in ("torch", "numpy", "machine")},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RequestError):
                raise
            raise DataError(f"the manifest is malformed ({type(error).__name__}: {error})") from None

    def open(self) -> ModelBundle:
        """Loads the model. Raises CheckpointError where its files are not those that made the picture."""
        try:
            bundle = open_bundle(self.model)
            for file in self.steering:
                bundle = add_steering(bundle, file, allow_pickle=self.model.allow_pickle)
            for file, encoder in self.prompters:
                bundle = add_ip_adapter(bundle, file, encoder, allow_pickle=self.model.allow_pickle)
        except CheckpointError as error:
            raise CheckpointError(
                f"the picture's model does not open: {error}; --model and --additions say where it is"
            ) from None
        info = bundle.info
        found = tuple(sorted(file.sha256 for file in [*info.files, *(a.file for a in info.additions)]))
        if found != self.files:
            first = next(iter(set(self.files) - set(found)), "none")
            raise CheckpointError(
                f"{info.name} is not the model that made the picture: no file has SHA-256 {first[:16]}...; "
                "give the right one with --model, the folder of its other files with --additions"
            )
        return bundle

    def find_inputs(self, folder: Path = Path()) -> Inputs:
        """What the picture was made from. Raises DataError where something is not in the folder, or is another picture
        than it was."""
        return Inputs({named.role: named.find(folder) for named in self.inputs})

    def start(self, bundle: ModelBundle, given: Mapping[str, Input]) -> Run:
        """The run that makes the picture again: it is number `index` of the run's pictures. given: `find_inputs`."""
        return run(self.task.plan(bundle, self.request, given))

    def notices(self) -> list[str]:
        """What is different here from where the picture was made, and may change its last bits."""
        here = _versions()
        lines = [
            f"{name} is {here[name]} here, was {value}: the last bits may differ"
            for name, value in self.versions.items()
            if here[name] != value
        ]
        if self.threads != torch.get_num_threads():
            lines.append(f"{torch.get_num_threads()} threads here, {self.threads} there: the last bits may differ")
        return lines

    def differences(self, picture: Image.Image, again: Image.Image) -> str:
        """What differs between the file's picture and the one made again, in words; empty where nothing does."""
        if pixels_sha256(again) == self.pixels_sha256:
            if pixels_sha256(picture) == self.pixels_sha256:
                return ""
            return "the file's pixels are not those that its manifest was written for: it was changed later"
        if picture.size != again.size or picture.mode != again.mode:
            return f"made again it is {_kind(again)}, the file's picture is {_kind(picture)}"
        gap = np.abs(np.asarray(picture, np.float64) - np.asarray(again, np.float64))
        gap = gap.max(-1) if gap.ndim == 3 else gap
        if not gap.any():
            return "the manifest's pixel hash is wrong: the file's picture and the one made again are equal"
        return f"{np.count_nonzero(gap)} of {gap.size} pixels differ, by {gap.max():g} at most"


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": np.__version__, "machine": platform.machine()}


def _kind(picture: Image.Image) -> str:
    return f"{picture.mode} {picture.width} x {picture.height}"


def _place(folder: Path, addition: Mapping[str, Any]) -> str:
    """The file in the folder, or for weights from a folder of their own the right one in the folders there, or else a
    name to look for in $LANGEVIN_MODELS.

    The weights of all diffusers' folders have the same name: their hash tells which is the addition's.
    """
    name, own = Path(str(addition["name"])).name, addition.get("folder")
    there = [folder / name, *(sorted(folder.glob(f"*/{escape(name)}")) if own is not None else ())]
    there = [path for path in there if path.is_file()]
    if own is None and there:
        return str(there[0])
    for path in there:
        file = SourceFile(path, path.stat().st_size)
        if file.size == addition["bytes"] and file.sha256 == addition["sha256"]:
            return str(path)
    return Path(name if own is None else str(own)).name


def _whereabouts(source: Mapping[str, Any]) -> str | None:
    """Where to load the model from that a manifest names."""
    name = str(source["source"])
    if name.startswith("package:"):
        return None
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    return Path(name).name  # a picture may name a file, not a place
