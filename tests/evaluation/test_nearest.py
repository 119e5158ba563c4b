"""The nearest pictures, names found by pictures, and features in few dimensions."""

from __future__ import annotations

import pytest
import torch

from langevin.errors import DataError
from langevin.evaluation import nearest as module
from langevin.evaluation.nearest import nearest, pixel_vectors, share_nearer
from langevin.evaluation.principal import Principal
from langevin.evaluation.retrieval import places_of, ranks, share_found


def test_the_nearest_is_that_of_all_distances_and_a_copy_is_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(30, 5, generator=generator) + 100
    queries = torch.cat([torch.randn(9, 5, generator=generator) + 100, references[[12, 29]]])
    distance = torch.cdist(queries.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = nearest(queries, references)
    assert found.places.tolist() == distance.argmin(1).tolist() and found.places[-2:].tolist() == [12, 29]
    assert torch.allclose(found.distances.double(), distance.amin(1), atol=1e-6) and found.distances[-1] == 0
    others = nearest(references, references, own=torch.arange(30))
    assert (others.places != torch.arange(30)).all() and (others.distances > 0).all()
    with pytest.raises(DataError, match="vectors N D and M D"):
        nearest(queries, references[:, :4])
    with pytest.raises(DataError, match="too few to find another"):
        nearest(queries[:1], references[:1], own=torch.zeros(1, dtype=torch.int64))


def test_pixels_are_a_root_mean_square_apart_at_most_the_side_given() -> None:
    dark = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    half = dark.clone()
    half[..., :4] = 255
    a, b = pixel_vectors(dark, 4), pixel_vectors(half, 4)
    assert a.shape == (1, 48) and float((a - b).norm()) == pytest.approx(0.5**0.5)
    assert pixel_vectors(dark, 16).shape == (1, 192)


def test_a_remembered_picture_is_relatively_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    monkeypatch.setattr(module, "NEIGHBOURS", 4)
    references = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.stack([references[20] + 0.01, references.mean(0)])
    distance = torch.cdist(queries.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = nearest(queries, references)
    expected = distance.amin(1) / distance.topk(4, largest=False).values.mean(1)
    assert torch.allclose(found.relative.double(), expected, atol=1e-4)
    assert found.places[0] == 20 and found.relative[0] < 0.05 < 0.7 < found.relative[1] <= 1
    assert nearest(queries, references[:1]).relative.tolist() == [1, 1]


def test_the_share_that_is_nearer_is_half_where_there_is_no_difference() -> None:
    others = torch.arange(4).float()
    assert share_nearer(others, others) == 0.5
    assert share_nearer(others - 10, others) == 1 and share_nearer(others + 10, others) == 0
    assert share_nearer(torch.tensor([1.5]), others) == 0.5 and share_nearer(torch.tensor([3.0]), others) == 0.125


def test_ranks_count_the_texts_that_are_nearer() -> None:
    texts = torch.eye(3)
    images = torch.tensor([[5.0, 1, 0], [1, 2, 3], [0, 3, 1]])
    found = ranks(images, texts, places_of(["a", "a", "c"], ["a", "b", "c"]))
    assert found.tolist() == [0, 2, 1]
    assert share_found(found) == pytest.approx(1 / 3) and share_found(found, 2) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="'d' is not among the 3 texts"):
        places_of(["d"], ["a", "b", "c"])
    with pytest.raises(DataError, match="N places are needed"):
        ranks(images, texts, torch.zeros(2, dtype=torch.int64))


def test_components_keep_the_directions_that_vary() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(200, 4, generator=generator) * torch.tensor([5.0, 3, 0.1, 0.1]) + 7
    few = Principal.of(wide, 2)
    assert few(wide).shape == (200, 2) and few.explained > 0.99
    assert few(wide).mean(0).abs().max() < 1e-5
    assert few(wide).var(0).tolist() == pytest.approx([25, 9], rel=0.3)
    whole = Principal.of(wide, 9)
    assert whole(wide).shape == (200, 4)
    assert torch.allclose(torch.cdist(whole(wide), whole(wide)), torch.cdist(wide.double(), wide.double()), atol=1e-5)
    with pytest.raises(DataError, match="at least 1 of 2 rows"):
        Principal.of(wide[:1], 1)
