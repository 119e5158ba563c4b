"""Models from the Hugging Face Hub, through its own client: its cache, HF_HUB_OFFLINE, HF_ENDPOINT and login apply.

A branch or tag is resolved to a commit once, by the first file; every other file is asked for at that commit. Only
configurations, vocabularies and the weight files that are going to be used are downloaded. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from langevin.errors import CheckpointError

SUFFIXES = (".safetensors", ".json", ".txt")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_ID = re.compile(r"(?:hub:)?([\w][\w.-]*/[\w][\w.-]*)(?:/([\w. /+-]+\.(?:safetensors|ckpt|pt|pth|bin)))?")
_INDEX = "model_index.json"
_MODEL_FILES = (
    "scheduler/scheduler_config.json",
    "low_res_scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)
_ENCODER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_COMPONENTS = (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"))


class Repository(NamedTuple):
    """A Hub id."""

    id: str
    """owner/name"""
    file: str | None
    """One file in it, if asked for."""

    @property
    def name(self) -> str:
        return self.id.rpartition("/")[2]


class Fetched(NamedTuple):
    """What lies in the cache now."""

    path: Path
    """The snapshot's folder, or the one file."""
    commit: str
    """40 hexadecimal digits."""


def parse(text: str) -> Repository | None:
    """`owner/name` or `owner/name/path/file.safetensors`, with or without `hub:`. None for anything else."""
    found = _ID.fullmatch(text)
    if found is None or ".." in text or "//" in text:
        return None
    return Repository(found[1], found[2])


def fetch(
    repository: Repository,
    *,
    revision: str | None = None,
    kind: Literal["model", "controlnet", "autoencoder", "text-encoder"] = "model",
    non_ema: bool = False,
    half: bool = False,
    allow_pickle: bool = False,
) -> Fetched:
    """The files of a model, from the cache or the network. CheckpointError, in one line, where they cannot be had.

    revision: branch, tag or commit; None is `main`. non_ema, half: which variants of the weights to prefer.
    """
    from langevin.checkpoints.weightfiles import variants

    at = revision or "main"
    if repository.file is not None:
        path = _download(repository, repository.file, at)
        return Fetched(path, _commit(path, repository.file))
    first = _INDEX if kind == "model" else "config.json"
    try:
        index = _try_download(repository, first, at)
    except _UnreachableError:
        if _cached_snapshot(repository, at) is None:
            raise
        index = None
    if index is None:
        return _single_file(repository, at)
    commit = _commit(index, first)
    names = _listing(repository, commit, index.parent)
    order = variants(half=half, non_ema=non_ema)
    # The weights of a single component lie at the top.
    components, texts = {
        "model": (_COMPONENTS, _MODEL_FILES),
        "controlnet": ((("", "diffusion_pytorch_model"),), ()),
        "autoencoder": ((("", "diffusion_pytorch_model"),), ()),
        "text-encoder": ((("", "model"),), _ENCODER_FILES),
    }[kind]
    for name in texts:
        if name in names:
            _download(repository, name, commit)
    for folder, stem in components:
        for name in _weights(repository, commit, names, folder, stem, order, allow_pickle=allow_pickle):
            _download(repository, name, commit)
    return Fetched(index.parent, commit)


def _weights(
    repository: Repository,
    commit: str,
    names: Sequence[str],
    folder: str,
    stem: str,
    order: Sequence[str | None],
    *,
    allow_pickle: bool,
) -> Iterator[str]:
    """The weight files of one component."""
    from langevin.checkpoints.weightfiles import choose, pickled_candidates, shard_names

    prefix = f"{folder}/" if folder else ""
    there = [name.removeprefix(prefix) for name in names if str(PurePosixPath(name).parent) == (folder or ".")]
    chosen = choose(there, stem, order)
    if chosen is not None:
        name, index = chosen
        yield prefix + name
        if index:
            shards = shard_names(_download(repository, prefix + name, commit))
            yield from (prefix + shard for shard in sorted(set(shards.values())))
        return
    pickled = next((name for name in pickled_candidates(stem, order) if name in there), None)
    if pickled is None:
        raise CheckpointError(f"{repository.id}: no weights in {prefix or 'it'}: expected {stem}.safetensors")
    if not allow_pickle:
        raise CheckpointError(
            f"{repository.id}: only pickled weights ({prefix}{pickled}), a format that can carry programs; if you "
            "trust them, pass allow_pickle=True (--allow-pickle)"
        )
    yield prefix + pickled


def _single_file(repository: Repository, revision: str) -> Fetched:
    """A repository that is no diffusers folder, if it holds just one weight file."""
    from huggingface_hub import HfApi

    snapshot = _cached_snapshot(repository, revision)
    commit = snapshot.name if snapshot is not None else revision
    try:
        with _in_one_line(repository, revision, None):
            commit = HfApi().model_info(repository.id, revision=revision).sha or revision
    except _UnreachableError:
        if snapshot is None:
            raise
    names = [n for n in _listing(repository, commit, snapshot) if n.endswith(".safetensors")]
    if len(names) != 1:
        some = ", ".join(f"{repository.id}/{name}" for name in names[:4]) or "none found"
        raise CheckpointError(f"{repository.id}: no {_INDEX}; name one of its weight files instead: {some}")
    path = _download(repository, names[0], commit)
    return Fetched(path, _commit(path, names[0]))


def _cached_snapshot(repository: Repository, revision: str) -> Path | None:
    """The folder in which the cache keeps a revision's files, if it has any."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository.id, repo_type="model"))
    reference = folder / "refs" / revision
    commit = reference.read_text(encoding="ascii").strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"[0-9a-f]{40}", commit) and snapshot.is_dir() else None


def _download(repository: Repository, name: str, revision: str) -> Path:
    path = _try_download(repository, name, revision)
    if path is None:
        raise CheckpointError(f"{repository.id}: no file {name} at {revision}")
    return path


def _try_download(repository: Repository, name: str, revision: str) -> Path | None:
    """A file in the cache. None where the repository has no such file."""
    from huggingface_hub import hf_hub_download

    if not name.endswith(SUFFIXES + _PICKLES):
        raise CheckpointError(f"{repository.id}: {name} is not a weight file or a configuration")
    with _in_one_line(repository, revision, name):
        return Path(hf_hub_download(repository.id, name, revision=revision))
    return None


def _listing(repository: Repository, revision: str, snapshot: Path | None) -> list[str]:
    """The files at a revision; without the network, those of the cached snapshot."""
    from huggingface_hub import HfApi, constants

    def cached() -> list[str]:
        return [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()] if snapshot else []

    if constants.HF_HUB_OFFLINE and snapshot is not None:
        return cached()
    try:
        with _in_one_line(repository, revision, None):
            return HfApi().list_repo_files(repository.id, revision=revision)
    except _UnreachableError:
        if snapshot is not None:
            return cached()
        raise
    return []


def _commit(path: Path, name: str) -> str:
    """The cache keeps a file at snapshots/COMMIT/NAME."""
    commit = path.parts[-1 - len(PurePosixPath(name).parts)]
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise CheckpointError(f"{path}: not in a snapshot of the Hub's cache; empty the cache and try again")
    return commit


class _UnreachableError(CheckpointError):
    """The Hub does not answer, or must not be asked."""


@contextmanager
def _in_one_line(repository: Repository, revision: str, name: str | None) -> Iterator[None]:
    """The client's errors as ours. A missing file is no error: the block just ends."""
    from huggingface_hub import constants, errors

    what = f"{repository.id}{f'/{name}' if name else ''}"
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repository.id}: gated: accept its terms on {constants.ENDPOINT}/{repository.id} and log in "
            "(`hf auth login`, or HF_TOKEN)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{repository.id}: no such file here, and no such model on {constants.ENDPOINT} (or it is private: log in "
            "with `hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repository.id}: no revision {revision} on {constants.ENDPOINT}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise _UnreachableError(
            f"{what}: not in the cache ({constants.HF_HUB_CACHE}) at {revision}, and {why}"
        ) from None
    except errors.EntryNotFoundError:
        return
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository.id}: no Hub id: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise _UnreachableError(f"{what}: {constants.ENDPOINT} answers: {_first_line(error)}") from None
    except OSError as error:
        raise CheckpointError(f"{what}: {error.strerror or _first_line(error)}") from None
    except Exception as error:  # the client's transport has exceptions of its own
        raise _UnreachableError(f"{what}: {constants.ENDPOINT} does not answer: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
