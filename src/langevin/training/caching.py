"""What frozen networks make of the data, so that they do it once: latents on the disk, text states in memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.checkpoints.atomic import atomic_write
from langevin.errors import CheckpointError
from langevin.model.text import PromptEncoder
from langevin.networks.autoencoder import AutoencoderKL
from langevin.training import distributed
from langevin.training.config import Config
from langevin.training.data import PictureSet
from langevin.training.objectives.autoencoder import encode_all

ROWS = 1024
"""Pictures a file."""
_VERSION = "1"

Shard = dict[str, Tensor]
Spread = Callable[[Callable[[Any], Shard], Callable[[int], Any], int, Callable[[int, Shard], None]], None]
"""(work, piece, count, keep): runs `work(piece(i))` for every i below `count`, wherever it likes, and gives each result
to `keep(i, result)` here."""


class CacheConfig(Config):
    """Where the results of frozen networks are kept. No weights depend on it."""

    folder: str | None = None
    """A folder for encoded pictures, which several runs may share; `cache` in the run folder where it is None."""
    cluster: str | None = None
    """The address of a Ray cluster that encodes them ("auto": the one this machine belongs to); None: they are encoded
    here."""


def weights_key(network: nn.Module, *facts: str) -> str:
    """64 hexadecimal digits that change with any weight of the network and with any of the facts."""
    digest = hashlib.sha256("\n".join((_VERSION, str(ROWS), *facts)).encode("utf-8", "surrogatepass"))
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes())
    return digest.hexdigest()


def cached(
    folder: Path,
    key: str,
    count: int,
    piece: Callable[[int, int], Any],
    work: Callable[[Any], Shard],
    spread: Spread | None = None,
) -> Mapping[str, Tensor]:
    """What `work` makes of all pictures, in parts of `ROWS`: `work(piece(start, end))` gives tensors with end - start
    rows. Each part is a file in `folder/KEY` once it is there.

    A file appears whole or not at all, so that a killed process goes on where it stopped; one that cannot be read is
    made anew. Several processes share the work and need a folder that all see. Raises CheckpointError where the
    folder cannot be written.
    """
    place = folder / key[:32]
    ranges = [(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]
    paths = [place / f"{start:09d}-{end:09d}.safetensors" for start, end in ranges]
    missing = [i for i, (path, (a, b)) in enumerate(zip(paths, ranges, strict=True)) if not _fits(path, b - a)]
    distributed.wait()  # nobody writes before all have looked
    mine = missing[distributed.rank() :: distributed.world()]
    (spread or _here)(
        work, lambda i: piece(*ranges[mine[i]]), len(mine), lambda i, shard: _write(paths[mine[i]], shard)
    )
    distributed.wait()
    shards = [load_file(path) for path in paths]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def cached_latents(
    network: AutoencoderKL,
    data: PictureSet,
    device: str,
    config: CacheConfig,
    run: Path,
    bucket: int = 0,
    *,
    mirrored: bool = False,
) -> tuple[Tensor, Tensor]:
    """`encode_all` of one bucket's pictures, or of their mirror images, through the cache: the same numbers, to the bit
    where they are made with the same number of threads."""
    folder = run / "cache" if config.folder is None else Path(config.folder)
    spread = None
    if config.cluster is not None:
        from langevin.training.cluster import over_cluster

        spread = over_cluster(config.cluster, device)

    pictures = data.parts[bucket]

    def piece(start: int, end: int) -> PictureSet:
        return PictureSet(pictures[start:end], [{}] * (end - start), data.fingerprint)

    work = partial(_encode, network, device, mirrored)
    pixels = hashlib.sha256(pictures.numpy().tobytes()).hexdigest()  # `data` may be a part of a set
    key = weights_key(network, "mirrored latents" if mirrored else "latents", pixels)
    found = cached(folder, key, len(pictures), piece, work, spread)
    return found["mean"], found["deviation"]


def _encode(network: AutoencoderKL, device: str, mirrored: bool, pictures: PictureSet) -> Shard:
    mean, deviation = encode_all(network, pictures, device, mirrored=mirrored)
    return {"mean": mean, "deviation": deviation}


def _here(
    work: Callable[[Any], Shard], piece: Callable[[int], Any], count: int, keep: Callable[[int, Shard], None]
) -> None:
    for i in range(count):
        keep(i, work(piece(i)))


def _fits(path: Path, rows: int) -> bool:
    try:
        return path.is_file() and all(len(t) == rows for t in load_file(path).values())
    except (OSError, ValueError, SafetensorError):
        return False


def _write(path: Path, shard: Shard) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file({name: t.contiguous() for name, t in shard.items()}, temporary)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}): set cache.folder to another one") from error


class TextStates:
    """The text states of captions, each encoded once while there is room.

    Every caption goes through the tower by itself: in a batch, the last bits of a row depend on how many rows there
    are, and then a resumed run, whose memory is empty, would not reach the same weights. For the same reason it goes
    through in float32 and by plain matrix products, whoever asks.
    """

    def __init__(self, text: PromptEncoder, device: str, limit: int = 2**30) -> None:
        """limit: bytes, of which the states that were asked for last are kept; in the memory of `device`."""
        self.text = text
        self.device = device
        self.limit = limit
        self.encoded = 0
        """How often the tower has run."""
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    @torch.no_grad()
    def of(self, captions: Sequence[str]) -> Tensor:
        """B L D, in the tower's dtype, a row for each caption."""
        return torch.stack([self._one(caption) for caption in captions])

    def _one(self, caption: str) -> Tensor:
        if caption in self._kept:
            self._kept.move_to_end(caption)
            return self._kept[caption]
        with torch.autocast(torch.device(self.device).type, enabled=False):
            state = self.text.states([caption])[0].clone()
        self.encoded += 1
        self._kept[caption] = state
        self._bytes += state.nbytes
        while self._bytes > self.limit:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return state
