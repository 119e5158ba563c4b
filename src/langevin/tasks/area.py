"""How the area of a picture is computed: as a whole, in overlapping tiles, on a torus, en- and decoded in strips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from langevin.diffusion.tiles import Tile, tiles_over
from langevin.errors import RequestError
from langevin.model.autoencoder import Autoencoder
from langevin.networks.wrapping import wrapping
from langevin.tasks.request import GenerateRequest

N = TypeVar("N", bound=nn.Module)
A = TypeVar("A", Autoencoder, Autoencoder | None)

WHOLE = 1024 * 1024
"""Pictures of more pixels than this are encoded and decoded in strips, unless the request says otherwise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Area:
    """What a completed request says about the picture's area, in cells: of latents, or of pixels."""

    grid: tuple[int, int]
    """Height and width."""
    tiles: tuple[Tile, ...] = ()
    """What is denoised one by one. Empty: all at once."""
    wraps: tuple[bool, bool] = (False, False)
    """Whether the picture's top and bottom, left and right fit together."""
    in_strips: bool = False
    notices: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: GenerateRequest, network: nn.Module, autoencoder: Autoencoder | None) -> Area:
        """Raises RequestError where edges cannot fit together at this size."""
        f = 1 if autoencoder is None else autoencoder.downsampling
        width, height = request.width or 0, request.height or 0
        grid = -(-height // f), -(-width // f)
        wraps = request.seamless in ("y", "both"), request.seamless in ("x", "both")
        notices = _size_notices(width, height, f)
        tiles: list[Tile] = []
        if request.tile is not None:
            side = -(-request.tile // f)
            tiles = tiles_over(grid, (side, side), request.tile_overlap, wraps=wraps)
            if len(tiles) == 1:
                notices.append(f"a tile of {request.tile} pixels covers the whole picture: tile has no effect")
                tiles = []
        area = cls(
            grid=grid,
            tiles=tuple(tiles),
            wraps=wraps,
            in_strips=autoencoder is not None and strips_at(request, width, height),
        )
        step = f * network_strides(network)
        for name, size, around, inside in zip(
            ("height", "width"), (height, width), wraps, area.network_wraps, strict=True
        ):
            unit = step if inside else f
            if around and size % unit:
                low = size - size % unit
                near = ", ".join(str(n) for n in (low, low + unit) if n)
                raise RequestError(f"{name} {size} is not a multiple of {unit}, as seamless needs; nearest: {near}")
        if area.in_strips and request.tiled_decode == "auto":
            notices.append(f"{width} x {height}: decoded in strips, which gives the same within rounding")
        return replace(area, notices=tuple(notices))

    @property
    def network_wraps(self) -> tuple[bool, bool]:
        """The axes that the network itself wraps along: a tile that goes across an edge has no edge there."""
        part = (self.tiles[0].height, self.tiles[0].width) if self.tiles else self.grid
        y, x = (around and n == whole for around, n, whole in zip(self.wraps, part, self.grid, strict=True))
        return y, x

    def network(self, network: N) -> N:
        """The denoising network for this area."""
        y, x = self.network_wraps
        return wrapping(network, x=x, y=y)

    def autoencoder(self, autoencoder: Autoencoder | None) -> Autoencoder | None:
        """The autoencoder for this area."""
        if autoencoder is None:
            return None
        y, x = self.wraps
        return replace(autoencoder, network=wrapping(autoencoder.network, x=x, y=y), in_strips=self.in_strips)


def strips_at(request: GenerateRequest, width: int, height: int) -> bool:
    """Whether a picture of this size is decoded in strips."""
    return request.tiled_decode == "yes" or (request.tiled_decode == "auto" and width * height > WHOLE)


def encoding(autoencoder: A, request: GenerateRequest) -> A:
    """The autoencoder for a picture of a completed request's size that something begins with: in strips where the
    result is decoded in strips. None stays None."""
    if autoencoder is None:
        return autoencoder
    return replace(autoencoder, in_strips=strips_at(request, request.width or 0, request.height or 0))


def network_strides(network: nn.Module) -> int:
    """By how much the network's lowest level is smaller than its input."""
    levels = getattr(getattr(network, "config", None), "channel_mult", (1,))
    return int(2 ** (len(levels) - 1))


def _size_notices(width: int, height: int, factor: int) -> list[str]:
    if width % factor == 0 and height % factor == 0:
        return []
    w, h = -(-width // factor) * factor, -(-height // factor) * factor
    return [f"{width} x {height} is not a multiple of {factor}: computed at {w} x {h} and cut"]
