"""Denoising in tiles: what is local comes out the same, every pixel is covered, and edges are not seen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.diffusion.known_denoisers import gaussian, wavy

from langevin.diffusion.core import Denoiser, Estimate
from langevin.diffusion.grids import karras_levels
from langevin.diffusion.noise import Noise
from langevin.diffusion.samplers import SAMPLERS
from langevin.diffusion.tiles import Tile, tiled, tiles_over
from langevin.errors import RequestError

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(SIZES, SIZES, st.floats(0, 0.9), st.tuples(st.booleans(), st.booleans()))
def test_tiles_cover_every_pixel_and_overlap_as_much_as_asked(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, wraps: tuple[bool, bool]
) -> None:
    found = tiles_over(size, tile, overlap, wraps=wraps)
    covered = torch.zeros(1, 1, *size)
    for part in found:
        assert (part.height, part.width) == tuple(min(a, b) for a, b in zip(size, tile, strict=True))
        part.add_to(covered, torch.ones(1, 1, part.height, part.width))
    assert covered.min() >= 1
    for axis, places in enumerate((sorted({w.top for w in found}), sorted({w.left for w in found}))):
        part = min(size[axis], tile[axis])
        gaps = [b - a for a, b in pairwise(places)]
        assert all(gap <= max(1, part * (1 - overlap)) + 0.5 for gap in gaps)
        assert wraps[axis] or places[-1] + part == size[axis]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("wraps", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("make", [gaussian, lambda: wavy], ids=["gaussian", "wavy"])
def test_a_denoiser_that_looks_at_one_pixel_is_the_same_in_tiles(
    make: Callable[[], Denoiser], wraps: tuple[bool, bool]
) -> None:
    whole = make()
    parts = tiled(lambda tile: whole, tiles_over((13, 17), (6, 8), 0.4, wraps=wraps))
    x = Noise([1, 2], (3, 13, 17), dtype=torch.float64).initial() * 3
    for ours, theirs in zip(parts(x, 3.0), whole(x, 3.0), strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
def test_and_so_are_whole_runs(sampler: str) -> None:
    sigmas = torch.cat([karras_levels(10.0, 0.1, 5), torch.zeros(1, dtype=torch.float64)])
    whole = gaussian()
    parts = tiled(lambda tile: whole, tiles_over((2 * 3, 3 * 4), (3, 5)))
    noise = Noise([1], (2, 6, 12), dtype=torch.float64)
    runs = [
        [step.x for step in SAMPLERS[sampler].function(denoiser, 10 * noise.initial(), sigmas, noise.fresh())]
        for denoiser in (whole, parts)
    ]
    assert torch.allclose(runs[0][-1], runs[1][-1], atol=1e-10)


def test_each_tile_has_its_own_denoiser_and_the_mean_is_weighted() -> None:
    """Two tiles that say 0 and 1: between them a ramp, by the tents."""

    def says(tile: Tile) -> Denoiser:
        return lambda x, sigma: Estimate(torch.full_like(x, float(tile.left > 0)))

    x0, fraction = tiled(says, tiles_over((2, 6), (2, 4), 0.5))(torch.zeros(1, 1, 2, 6), 1.0)
    assert fraction is None
    assert torch.allclose(x0[0, 0], torch.tensor([0, 0, 0.5 / 2, 1.5 / 2, 1, 1]).expand(2, 6))


def test_where_the_picture_wraps_no_place_is_special() -> None:
    """A denoiser that is not local, in tiles all around: what is moved by the tiles' stride comes out moved."""

    def shifted(x: torch.Tensor, sigma: float) -> Estimate:
        return Estimate(torch.nn.functional.avg_pool2d(x, 3, 1, 1))

    parts = tiled(lambda tile: shifted, tiles_over((4, 12), (4, 6), 0.5, wraps=(False, True)))
    x = Noise([3], (1, 4, 12), dtype=torch.float64).initial()
    moved = parts(x.roll(3, 3), 1.0).x0
    assert torch.allclose(moved, parts(x, 1.0).x0.roll(3, 3), atol=1e-12)


def test_an_overlap_of_everything_is_refused() -> None:
    with pytest.raises(RequestError, match="overlap 1 is out of range"):
        tiles_over((4, 4), (2, 2), 1.0)
    assert tiles_over((4, 4), (8, 8)) == [Tile(0, 0, 4, 4)]
