"""The Inception network against a second writing of it: plain functions over the state dict, pooling by definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from langevin.checkpoints.inception_file import load_inception
from langevin.errors import CheckpointError
from langevin.networks.inception import Inception

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights that keep the size of the activations through all layers, and moments that matter."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, value in Inception().state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            values[name] = noise * (2 / value[0].numel()) ** 0.5
        else:
            values[name] = 0.1 * noise + (1 if name.endswith(("weight", "var")) else 0)
    return values


def mean_of_windows(x: Tensor) -> Tensor:
    kernel = torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype)
    total = F.conv2d(x, kernel, padding=1, groups=x.shape[1])
    return total / F.conv2d(torch.ones_like(x), kernel, padding=1, groups=x.shape[1])


def largest_of_windows(x: Tensor, stride: int, padding: int) -> Tensor:
    padded = F.pad(x, (padding,) * 4, value=-torch.inf)
    return padded.unfold(2, 3, stride).unfold(3, 3, stride).amax((-2, -1))


def resized(x: Tensor, size: int) -> Tensor:
    """Bilinear, each new pixel between the two nearest old ones, half-pixel centres, by float64 matrices."""
    old = x.shape[-1]
    places = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, old - 1)
    matrix = np.zeros((size, old))
    np.add.at(matrix, (np.arange(size), low), 1 - (places - low))
    np.add.at(matrix, (np.arange(size), high), places - low)
    m = torch.from_numpy(matrix)
    return m @ x @ m.T


def second_writing(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    def conv(x: Tensor, name: str, stride: int = 1, same: bool = True) -> Tensor:
        weight = state[f"{name}.conv.weight"].double()
        padding = [k // 2 if same else 0 for k in weight.shape[2:]]
        y = F.conv2d(x, weight, stride=stride, padding=padding)
        scale = state[f"{name}.bn.weight"].double() / (state[f"{name}.bn.running_var"].double() + 0.001).sqrt()
        shift = state[f"{name}.bn.bias"].double() - state[f"{name}.bn.running_mean"].double() * scale
        return (y * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).clamp(min=0)

    def chain(x: Tensor, block: str, *names: str) -> Tensor:
        for name in names:
            x = conv(x, f"{block}.{name}")
        return x

    def block(x: Tensor, name: str, pool: Callable[[Tensor], Tensor], *branches: tuple[str, ...]) -> Tensor:
        parts = [chain(x, name, *branch) for branch in branches]
        return torch.cat([*parts, chain(pool(x), name, "branch_pool")], 1)

    x = conv(x, "Conv2d_1a_3x3", 2, same=False)
    x = conv(conv(x, "Conv2d_2a_3x3", same=False), "Conv2d_2b_3x3")
    x = largest_of_windows(x, 2, 0)
    x = conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False)
    x = largest_of_windows(x, 2, 0)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five, three = ("branch5x5_1", "branch5x5_2"), tuple(f"branch3x3dbl_{i}" for i in (1, 2, 3))
        x = block(x, name, mean_of_windows, ("branch1x1",), five, three)
    twice = conv(chain(x, "Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2"), "Mixed_6a.branch3x3dbl_3", 2, same=False)
    x = torch.cat([conv(x, "Mixed_6a.branch3x3", 2, same=False), twice, largest_of_windows(x, 2, 0)], 1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        once, more = (tuple(f"branch7x7{d}_{i + 1}" for i in range(n)) for d, n in (("", 3), ("dbl", 5)))
        x = block(x, name, mean_of_windows, ("branch1x1",), once, more)
    three = conv(chain(x, "Mixed_7a", "branch3x3_1"), "Mixed_7a.branch3x3_2", 2, same=False)
    wide = chain(x, "Mixed_7a", *(f"branch7x7x3_{i}" for i in (1, 2, 3)))
    x = torch.cat([three, conv(wide, "Mixed_7a.branch7x7x3_4", 2, same=False), largest_of_windows(x, 2, 0)], 1)
    for name in ("Mixed_7b", "Mixed_7c"):
        pool = mean_of_windows if name == "Mixed_7b" else lambda y: largest_of_windows(y, 1, 1)
        double = ("branch3x3dbl_1", "branch3x3dbl_2")
        x = block(
            x, name, pool, ("branch1x1",), ("branch3x3_1", "branch3x3_2a"), ("branch3x3_1", "branch3x3_2b"),
            (*double, "branch3x3dbl_3a"), (*double, "branch3x3dbl_3b"),
        )  # fmt: skip
    features = x.mean((2, 3))
    return features, features @ state["fc.weight"].double().T


def test_the_network_is_the_second_writing(state: State, tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    # What older torch leaves beside the weights does not matter.
    save_file({**state, "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(3)}, path)
    network = load_inception(path)
    images = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features, logits = second_writing(state, resized(images.double(), 299))
    with torch.no_grad():
        seen = network(images)
    assert seen.features.shape == (1, 2048) and seen.logits.shape == (1, 1008)
    assert (seen.features - features).abs().max() <= 1e-4 * features.abs().max()
    assert (seen.logits - logits).abs().max() <= 1e-4 * logits.abs().max()
    assert features.std() > 0.1


def test_files_of_other_networks_are_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for changed, message in (
        ({n: v for n, v in state.items() if n != "fc.bias"}, r"1 of 472 tensors are missing \(fc.bias\)"),
        ({**state, "fc.weight": torch.zeros(1000, 2048)}, r"fc.weight has shape \[1000, 2048\], expected \[1008"),
        ({**state, "AuxLogits.fc.weight": torch.zeros(2)}, r"1 tensors too many \(AuxLogits.fc.weight\)"),
    ):
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            load_inception(path)


def test_a_pickle_needs_the_flag(state: State, tmp_path: Path) -> None:
    path = tmp_path / "pt_inception.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_inception(path)
    network = load_inception(path, allow_pickle=True)
    assert torch.equal(network.fc.weight, state["fc.weight"])
