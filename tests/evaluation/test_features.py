"""Against transformers' image tower and its preparation of pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from langevin.errors import DataError
from langevin.evaluation.distances import frechet_distance
from langevin.evaluation.features import OPENAI_DEVIATION, OPENAI_MEAN, ClipFeatures, clip_score, extract
from langevin.networks.clip import ClipImage, ClipImageConfig


@pytest.fixture(scope="module")
def reference() -> transformers.CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return transformers.CLIPVisionModelWithProjection(config).eval()


@pytest.fixture(scope="module")
def tower(reference: transformers.CLIPVisionModelWithProjection) -> ClipImage:
    config = ClipImageConfig(image_size=16, patch_size=4, width=32, layers=2, heads=2, mlp_width=48, projection=8)
    tower = ClipImage(config).eval().requires_grad_(False)
    tower.load_state_dict(reference.state_dict())
    return tower


def as_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 B H W C -> float B C H W in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def test_pictures_reach_the_tower_as_in_transformers(
    tower: ClipImage, reference: transformers.CLIPVisionModelWithProjection
) -> None:
    assert tuple(OPENAI_CLIP_MEAN) == OPENAI_MEAN and tuple(OPENAI_CLIP_STD) == OPENAI_DEVIATION
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    mean = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
    deviation = torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)
    prepared = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / deviation
    expected = reference(pixel_values=prepared).image_embeds
    published = ClipFeatures(tower, "tiny", mean=OPENAI_MEAN, deviation=OPENAI_DEVIATION)
    found = published(as_tensor(pixels))
    assert torch.allclose(found, expected, atol=1e-5)
    own = ClipFeatures(tower, "own")(as_tensor(pixels))
    assert torch.allclose(own, tower(as_tensor(pixels)), atol=1e-5)
    assert not torch.allclose(own, found, atol=1e-2)


def test_resizing_is_pillows_bicubic(tower: ClipImage) -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
    small = np.asarray(large.resize((16, 16), Image.Resampling.BICUBIC))
    extractor = ClipFeatures(tower, "own")
    found = extractor(as_tensor(np.asarray(large)[None].copy()))
    expected = extractor(as_tensor(small[None].copy()))
    assert torch.allclose(found, expected, atol=0.02)  # Pillow rounds to bytes
    assert expected.std() > 0.2


def test_batches_become_one_feature_set(tower: ClipImage) -> None:
    extractor = ClipFeatures(tower, "own")
    images = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    features = extract(extractor, images.split(7))
    assert features.shape == (30, 8) and features.dtype == torch.float32
    assert torch.allclose(features, extractor(images), atol=1e-5)
    assert frechet_distance(features, extract(extractor, (images * 0.2).split(7))) > 10 * frechet_distance(
        features, features + 1e-3
    )


def test_clip_score_is_the_cosine() -> None:
    images = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    texts = torch.tensor([[3.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
    assert clip_score(images, texts).tolist() == pytest.approx([100, 100 / math.sqrt(2), 0])


def test_what_does_not_fit_is_refused(tower: ClipImage) -> None:
    extractor = ClipFeatures(tower, "own")
    with pytest.raises(DataError, match=r"own takes square pictures B 3 S S, got \(1, 3, 16, 12\)"):
        extractor(torch.zeros(1, 3, 16, 12))
    with pytest.raises(DataError, match="square pictures B 3 S S"):
        extractor(torch.zeros(1, 1, 16, 16))
    with pytest.raises(DataError, match="3 values each"):
        ClipFeatures(tower, "own", mean=(0.5,))
    with pytest.raises(DataError, match="no pictures"):
        extract(extractor, [])
    with pytest.raises(DataError, match=r"got \(2, 3\) and \(1, 3\)"):
        clip_score(torch.zeros(2, 3), torch.zeros(1, 3))
