"""Which file of a component's folder holds its weights: variants, shards, formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from langevin.checkpoints.jsonfile import read_object
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.checkpoints.tensorfile import Shards, TensorFile, in_words
from langevin.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}
_SHARD = re.compile(r"[\w.+-]+\.safetensors")


def variants(*, half: bool, non_ema: bool) -> tuple[str | None, ...]:
    """Names of variants, the best first; None is the file without one."""
    tail: tuple[str | None, ...] = ("fp16", None, "bf16") if half else (None, "fp16", "bf16")
    return ("non_ema", *tail) if non_ema else tail


def candidates(stem: str, order: Sequence[str | None]) -> Iterator[tuple[str, bool]]:
    """File names in the order of preference, and whether each is the index of a sharded file."""
    for variant in order:
        dotted = f".{variant}" if variant else ""
        yield f"{stem}{dotted}.safetensors", False
        yield f"{stem}.safetensors.index{dotted}.json", True
        if variant:
            yield f"{stem}{dotted}.safetensors.index.json", True


def pickled_candidates(stem: str, order: Sequence[str | None]) -> Iterator[str]:
    for variant in order:
        yield f"{_PICKLES[stem]}{f'.{variant}' if variant else ''}.bin"


def choose(names: Iterable[str], stem: str, order: Sequence[str | None]) -> tuple[str, bool] | None:
    """The best safetensors file among `names`, or the index of one."""
    there = set(names)
    return next((candidate for candidate in candidates(stem, order) if candidate[0] in there), None)


def open_weights(folder: Path, stem: str, order: Sequence[str | None], *, allow_pickle: bool) -> TensorFile:
    """A component's weights: safetensors if there are any, else a pickle, if that is allowed.

    CheckpointError where there is neither, or where a shard is missing or holds other names than the index says.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not there; the model folder is incomplete")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    chosen = choose(names, stem, order)
    if chosen is not None:
        name, index = chosen
        return _open_shards(folder / name) if index else SafetensorsFile(folder / name)
    pickled = next((name for name in pickled_candidates(stem, order) if name in names), None)
    if pickled is not None:
        from langevin.checkpoints.pickled import PickledFile

        return PickledFile(folder / pickled, allow_pickle=allow_pickle)
    found = in_words(sorted(names)) or "nothing"
    raise CheckpointError(f"{folder}: no weights: expected {stem}.safetensors or its fp16 variant, found {found}")


def shard_names(index: Path) -> dict[str, str]:
    """Tensor names to shard names, from an index file. CheckpointError for a name that is not a plain file name."""
    table = read_object(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index}: no weight_map; expected the index of a sharded weight file")
    for shard in table.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard:
            raise CheckpointError(
                f"{index}: shard {str(shard)[:60]!r} is not the name of a .safetensors file beside it"
            )
    return table


def _open_shards(index: Path) -> TensorFile:
    table = shard_names(index)
    shards = []
    for name in sorted(set(table.values())):
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: shard {name} is missing; download it again")
        shards.append(SafetensorsFile(index.parent / name))
        promised = {tensor for tensor, shard in table.items() if shard == name}
        if different := sorted(promised ^ set(shards[-1].tensors)):
            raise CheckpointError(f"{index}: shard {name} does not hold what the index says ({in_words(different)})")
    return Shards(shards, str(index))
