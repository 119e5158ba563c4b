"""Files by name, in the folders of $LANGEVIN_MODELS: laid out as AUTOMATIC1111's or ComfyUI's, or all in one, or where
ComfyUI's extra_model_paths.yaml says. Needs no torch.

A name is compared with what is there and never made into a path, so that a prompt or a request cannot lead elsewhere.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from langevin.checkpoints.tensorfile import in_words
from langevin.errors import CheckpointError

VARIABLE = "LANGEVIN_MODELS"
"""Environment variable: folders, or files like `EXTRA`, separated as in PATH."""

EXTRA = "extra_model_paths.yaml"
"""ComfyUI's list of further folders, at the top of its own."""

FileKind = Literal["model", "lora", "embedding", "vae", "controlnet", "ip-adapter", "image-encoder"]

WORDS: dict[FileKind, str] = {
    "model": "model",
    "lora": "LoRA",
    "embedding": "embedding",
    "vae": "VAE",
    "controlnet": "ControlNet",
    "ip-adapter": "IP-Adapter",
    "image-encoder": "image encoder",
}

_FOLDERS: dict[FileKind, tuple[str, ...]] = {
    "model": ("stable-diffusion", "checkpoints", "diffusers"),
    "lora": ("lora", "loras", "lycoris"),
    "embedding": ("embeddings",),
    "vae": ("vae",),
    "controlnet": ("controlnet",),
    "ip-adapter": ("ipadapter", "controlnet"),
    "image-encoder": ("clip_vision",),
}
"""Where the two programs keep each kind, in the folder itself or under `models`; capitals do not matter."""

_PACKAGED: dict[FileKind, tuple[str, ...]] = {
    "lora": ("emoji-fast.safetensors",),
    "controlnet": ("emoji-edges.safetensors",),
}
"""What the package brings for its own model, by name like everything else; a user's file of that name comes first."""

_MOST_BYTES = 1_000_000
"""Of a list of folders."""
_SAFE = ".safetensors"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class Found(NamedTuple):
    """A file, or a folder that is one model."""

    name: str
    """Its path below the folder of its kind, with "/"."""
    path: Path

    @property
    def stem(self) -> str:
        """The name without the ending of a weight file."""
        stem, dot, ending = self.name.rpartition(".")
        return stem if f"{dot}{ending}".lower() in (_SAFE, *_PICKLES) else self.name


def find(kind: FileKind, name: str) -> Path | None:
    """The one of that name: with its ending or without, with the folder that it is in or without; or in the package.

    A safetensors file comes before another with the same name. None where there is none; CheckpointError, with the
    candidates, where there are several.
    """
    there = list(known(kind))
    safe = [found for found in there if not found.name.lower().endswith(_PICKLES)]
    for candidates in (
        [found for found in there if found.name == name],
        [found for found in there if found.path.name == name],
        [found for found in safe if found.stem == name],
        [found for found in safe if Path(found.stem).name == name],
        [found for found in there if found.stem == name],
        [found for found in there if Path(found.stem).name == name],
    ):
        paths = {os.path.realpath(found.path): found.path for found in reversed(candidates)}
        if len(paths) > 1:
            raise CheckpointError(
                f"{name!r} is the name of {len(paths)} {WORDS[kind]} files: {in_words(map(str, paths.values()))}; "
                "give the one that is meant with its folder"
            )
        if paths:
            return next(iter(paths.values()))
    for file in _PACKAGED.get(kind, ()):
        if name in (file, file.removesuffix(_SAFE)):
            return Path(str(files("langevin") / "data" / file))
    return None


def resolve(kind: FileKind, text: str | os.PathLike[str]) -> Path:
    """A path that exists, or the file of that name. CheckpointError where there is neither."""
    path = Path(text).expanduser()
    if exists(path):
        return path
    if found := find(kind, os.fspath(text)):
        return found
    raise CheckpointError(f"{os.fspath(text)[:200]}: no such file, and {missing(kind, os.fspath(text))}")


def missing(kind: FileKind, name: str) -> str:
    """That no file has this name, for a message: where was looked, and the nearest names."""
    folders = os.environ.get(VARIABLE)
    if not folders:
        return f"no place to find a {WORDS[kind]} by name (${VARIABLE} is not set)"
    names = {Path(found.stem).name for found in known(kind)}
    near = difflib.get_close_matches(name, sorted(names), n=3)
    hint = (
        f"; did you mean {' or '.join(map(repr, near))}?"
        if near
        else f" ({in_words(sorted(names)) or 'there is none'})"
    )
    return f"no {WORDS[kind]} of that name in {folders}{hint}"


def known(kind: FileKind) -> Iterator[Found]:
    """Everything of a kind that is there: what lies below the folders of its kind, then what lies at the top, then what
    lies below the folders of a list. CheckpointError for a list that cannot be read."""
    for root in map(Path, filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))):
        lists = root if root.is_file() else root / EXTRA
        for folder in _folders(root, kind):
            yield from _below(folder, folder, set())
        yield from _at_top(root)
        if lists.is_file():
            for folder in _listed_folders(lists, kind):
                yield from _below(folder, folder, set())


def exists(path: Path) -> bool:
    """False for what cannot be a path at all: too long, or with a NUL in it."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _folders(root: Path, kind: FileKind) -> Iterator[Path]:
    for parent in (root, root / "models"):
        for entry in _listed(parent):
            if entry.name.lower() in _FOLDERS[kind] and entry.is_dir():
                yield entry


def _listed_folders(path: Path, kind: FileKind) -> Iterator[Path]:
    """The folders of a kind that a list names: for each program its `base_path`, and by kind one folder a line."""
    import yaml

    try:
        if (found := path.stat().st_size) > _MOST_BYTES:
            raise CheckpointError(f"{path}: {found:,} bytes; a list of folders has at most {_MOST_BYTES:,}")
        # The safe loader builds plain values only.
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not YAML: {(str(error) or '?').splitlines()[0][:120]}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    programs = {} if data is None else data
    if not isinstance(programs, dict) or not all(isinstance(p, dict | None) for p in programs.values()):
        raise CheckpointError(f"{path}: not a list of folders: expected base_path and folders by kind for each program")
    for program in filter(None, programs.values()):
        base = path.parent / os.path.expandvars(os.path.expanduser(str(program.get("base_path") or "")))
        for name, folders in program.items():
            if str(name).lower() not in _FOLDERS[kind]:
                continue
            if not isinstance(folders, str):
                raise CheckpointError(f"{path}: {name}: expected a folder, or several on a line each")
            for line in filter(None, map(str.strip, folders.splitlines())):
                yield base / line


def _at_top(root: Path) -> Iterator[Found]:
    for entry in _listed(root):
        if _is_one(entry):
            yield Found(entry.name, entry)


def _below(folder: Path, top: Path, seen: set[str]) -> Iterator[Found]:
    """In every depth, following links, but none in a circle."""
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    for entry in _listed(folder):
        if _is_one(entry):
            yield Found(entry.relative_to(top).as_posix(), entry)
        elif entry.is_dir():
            yield from _below(entry, top, seen)


def _is_one(entry: Path) -> bool:
    if entry.is_dir():
        return any((entry / name).is_file() for name in ("model_index.json", "config.json"))
    return entry.suffix.lower() in (_SAFE, *_PICKLES)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
