"""Perceptual distances: LPIPS against its formula written out anew, and features of networks that are trained here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from langevin.checkpoints.lpips_file import load_lpips
from langevin.errors import CheckpointError
from langevin.networks.classifier import Block, Classifier, ClassifierConfig
from langevin.networks.clip import ClipImage, ClipImageConfig
from langevin.training.objectives.perceptual import ClipDistance, Features, LayerDistance, PerceptualConfig

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of torchvision's VGG-16: places in `features`."""
OUTPUTS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """VGG-16 and heads at random, under the names of their files."""
    g = torch.Generator().manual_seed(3)
    vgg: dict[str, Tensor] = {}
    before = 3
    for place, width in zip(CONVOLUTIONS, OUTPUTS, strict=True):
        vgg[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=g) * (2 / (9 * before)) ** 0.5
        vgg[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=g)
        before = width
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, w, 1, 1, generator=g) for k, w in enumerate(widths)}
    return vgg, heads


@pytest.fixture(scope="module")
def files(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    vgg, heads = weights
    save_file({**vgg, "classifier.6.bias": torch.zeros(1000)}, folder / "vgg16.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return folder / "vgg16.safetensors", folder / "heads.safetensors"


def by_hand(vgg: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Zhang et al. 2018, equation 1, in float64."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    x, y = ((p.double() - shift) / scale for p in (a, b))
    total = torch.zeros(len(a), dtype=torch.float64)
    for k, block in enumerate(BLOCKS):
        if k:
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        for place in block:
            w, bias = vgg[f"features.{place}.weight"].double(), vgg[f"features.{place}.bias"].double()
            x, y = (F.conv2d(p, w, bias, padding=1).relu() for p in (x, y))
        difference = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) - y / (
            y.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
        )
        total += F.conv2d(difference**2, heads[f"lin{k}.model.1.weight"].double()).mean((1, 2, 3))
    return total


def test_lpips_is_its_formula(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]], files: tuple[Path, Path], tmp_path: Path
) -> None:
    network = load_lpips(files)
    a, b = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = network(a, b)
    assert torch.allclose(found.double(), by_hand(*weights, a, b), rtol=1e-4, atol=1e-6)
    assert torch.equal(network(a, a), torch.zeros(2)) and torch.equal(found, network(b, a))
    a.requires_grad_(True)
    network(a, b).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())

    # The whole metric in one file, with its own names, and as a pickle.
    vgg, heads = weights
    slices = {place: k for k, block in enumerate(BLOCKS, 1) for place in block}
    whole = {f"net.slice{slices[int(n.split('.')[1])]}.{n.removeprefix('features.')}": v for n, v in vgg.items()}
    whole |= heads | {f"lins.{n.removeprefix('lin')}": v for n, v in heads.items()}
    whole |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    torch.save(whole, tmp_path / "lpips.pth")
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_lpips([tmp_path / "lpips.pth"])
    again = load_lpips([tmp_path / "lpips.pth"], allow_pickle=True)
    assert torch.equal(again(a.detach(), b), found)


def test_lpips_files_are_checked_both_ways(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]], files: tuple[Path, Path], tmp_path: Path
) -> None:
    vgg, heads = files
    _, values = weights
    bad = tmp_path / "bad.safetensors"
    for change, message in (
        ({"lin4.model.1.weight": None}, "1 of 31 tensors are missing .*lin4.model.1.weight"),
        ({"lin5.model.1.weight": torch.ones(1, 3, 1, 1)}, "1 tensors too many .*lin5.model.1.weight"),
        ({"lin0.model.1.weight": torch.ones(1, 65, 1, 1)}, "lin0.model.1.weight has shape"),
        ({"lin0.model.1.weight": -values["lin0.model.1.weight"]}, "lin0.model.1.weight has negative weights"),
    ):
        save_file({n: v for n, v in {**values, **change}.items() if v is not None}, bad)
        with pytest.raises(CheckpointError, match=message):
            load_lpips([vgg, bad])
    with pytest.raises(CheckpointError, match="26 of 31 tensors are missing"):
        load_lpips([heads])


def test_a_clip_tower_measures_by_its_layers() -> None:
    torch.manual_seed(1)
    tower = ClipImage(ClipImageConfig(image_size=16, patch_size=8, width=32, layers=2, heads=2, mlp_width=32))
    distance = ClipDistance(tower)
    a, b = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    # By hand: the states after each layer, without the class token.
    v = tower.vision_model
    terms = []
    x, y = (v.pre_layrnorm(v.embeddings(p)) for p in (a, b))
    for layer in v.encoder.layers:
        x, y = layer(x), layer(y)
        p, q = (s[:, 1:] / s[:, 1:].norm(dim=2, keepdim=True) for s in (x, y))
        terms.append(((p - q) ** 2).sum(2).mean(1))
    assert torch.allclose(distance(a, b), sum(terms) / 2, rtol=1e-4, atol=1e-6)
    assert torch.equal(distance(a, a), torch.zeros(3))
    larger = torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(larger, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert larger.grad is not None and larger.grad.abs().sum() > 0
    assert all(p.grad is None for p in tower.parameters())


def test_a_classifiers_maps_measure_too() -> None:
    network = Classifier(ClassifierConfig(size=16, widths=(8, 16), features=8, classes=3))
    levels = [name for name, module in network.named_modules() if isinstance(module, Block)]
    distance = LayerDistance(network, levels)
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    first = network.levels[0](network.stem(a))
    assert [tuple(m.shape) for m in distance.maps(a)] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    assert torch.equal(distance.maps(a)[0], first)
    assert (distance(a, b) > 0).all() and torch.equal(distance(b, b), torch.zeros(2))
    assert not any(m._forward_hooks for m in network.modules())
    with pytest.raises(ValueError, match=r"'nothing'.*is no module"):
        LayerDistance(nn.Identity(), ["nothing"])


def test_what_a_term_needs_is_said() -> None:
    assert PerceptualConfig().needs_own_clip
    assert not PerceptualConfig(files=(Path("clip.safetensors"),)).needs_own_clip
    for features, count in ((Features.CLIP, 2), (Features.CLASSIFIER, 0), (Features.LPIPS, 0), (Features.LPIPS, 3)):
        with pytest.raises(ValueError, match=f"files: {count} given, features {features.value} takes"):
            PerceptualConfig(features=features, files=(Path("x"),) * count)
