"""Makes a picture again from its manifest."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from langevin.errors import CheckpointError, DataError, RequestError
from langevin.images.png import pixels_sha256
from langevin.model.bundle import ModelBundle
from langevin.tasks.from_text import text_to_image
from langevin.tasks.opening import open_bundle
from langevin.tasks.request import GenerateRequest, ModelOptions
from langevin.tasks.runner import Run, run


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a manifest says about making its picture, checked like any request."""

    request: GenerateRequest
    model: ModelOptions
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
        folder that LoRA and embedding files are in.

        Raises DataError where the manifest lacks something or is malformed, RequestError where its options are out of
        bounds.
        """
        try:
            picture, source, versions = manifest["picture"], manifest["model"], manifest["versions"]
            # Pictures that were made before models could have additions do not say that there are none.
            listed = source.get("additions", [])
            added = {kind: [a for a in listed if a["kind"] == kind] for kind in ("lora", "embedding")}
            request = GenerateRequest(**manifest["request"])
            count = len(request.image_seeds())
            index = int(picture["index"]) if request.mode == "fast" else 0
            if not 0 <= index < count:
                raise DataError(f"the manifest is of picture {index}, its request makes {count}")
            return cls(
                request=request,
                model=ModelOptions(
                    model=model or _whereabouts(source),
                    dtype=manifest["precision"],
                    device=manifest["device"],
                    revision=source["revision"] if model is None else None,
                    prediction=source["prediction"],
                    config=config,
                    ema="yes" if source["weights"] == "ema" else "auto",
                    allow_pickle=allow_pickle,
                    lora=tuple(
                        f"{additions / Path(str(a['name'])).name}:{float(a['strength'])!r}" for a in added["lora"]
                    ),
                    embedding=tuple(f"{additions / Path(str(a['name'])).name}:{a['word']}" for a in added["embedding"]),
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
                "give the right one with --model, the folder of its LoRA and embedding files with --additions"
            )
        return bundle

    def start(self, bundle: ModelBundle) -> Run:
        """The run that makes the picture again: it is number `index` of the run's pictures."""
        return run(text_to_image(bundle, self.request))

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
        gap = np.abs(np.asarray(picture, np.int16) - np.asarray(again, np.int16)).max(-1)
        if not gap.any():
            return "the manifest's pixel hash is wrong: the file's picture and the one made again are equal"
        return f"{np.count_nonzero(gap)} of {gap.size} pixels differ, by {gap.max()} of 255 at most"


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": np.__version__, "machine": platform.machine()}


def _kind(picture: Image.Image) -> str:
    return f"{picture.mode} {picture.width} x {picture.height}"


def _whereabouts(source: Mapping[str, Any]) -> str | None:
    """Where to load the model from that a manifest names."""
    name = str(source["source"])
    if name.startswith("package:"):
        return None
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    return Path(name).name  # a picture may name a file, not a place
