"""LyCORIS files and DoRA: each kind against its formula in float64 numpy, and against PEFT where it has the kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from langevin.checkpoints.additions import add_lora
from langevin.checkpoints.lora import layer_names, read_lora
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle

MATRIX = "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj"  # 256 x 32
CONVOLUTION = "input_blocks.3.0.in_layers.2"  # 64 x 32 x 3 x 3
TEXT = "text_model.encoder.layers.0.mlp.fc1"  # 64 x 32
NORM = "input_blocks.1.1.norm"


def kohya(bundle: ModelBundle, name: str, part: str = "unet") -> str:
    prefix = "lora_unet_" if part == "unet" else "lora_te_"
    return prefix + layer_names(bundle, norms=True)[part][name].replace(".", "_")


def random(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def f64(t: Tensor) -> np.ndarray[Any, Any]:
    return t.double().numpy()


def tucker(t: Tensor, a: Tensor, b: Tensor) -> np.ndarray[Any, Any]:
    """The sum over both ranks, written out."""
    out = np.zeros((a.shape[1], b.shape[1], *t.shape[2:]))
    for i in range(t.shape[0]):
        for j in range(t.shape[1]):
            out += np.multiply.outer(np.multiply.outer(f64(a)[i], f64(b)[j]), f64(t)[i, j])
    return out


LOHA = {"hada_w1_a": (256, 3), "hada_w1_b": (3, 32), "hada_w2_a": (256, 3), "hada_w2_b": (3, 32)}
LOHA_FLAT = {"hada_w1_a": (64, 3), "hada_w1_b": (3, 288), "hada_w2_a": (64, 3), "hada_w2_b": (3, 288)}
LOHA_TUCKER = {
    "hada_t1": (3, 3, 3, 3), "hada_w1_a": (3, 64), "hada_w1_b": (3, 32),
    "hada_t2": (3, 3, 3, 3), "hada_w2_a": (3, 64), "hada_w2_b": (3, 32),
}  # fmt: skip


def loha(p: dict[str, Tensor]) -> Any:
    if "hada_t1" in p:
        first, second = (tucker(p[f"hada_t{i}"], p[f"hada_w{i}_a"], p[f"hada_w{i}_b"]) for i in (1, 2))
    else:
        first, second = (f64(p[f"hada_w{i}_a"]) @ f64(p[f"hada_w{i}_b"]) for i in (1, 2))
    return first * second


def lokr(p: dict[str, Tensor]) -> Any:
    w1 = f64(p["lokr_w1"]) if "lokr_w1" in p else f64(p["lokr_w1_a"]) @ f64(p["lokr_w1_b"])
    if "lokr_w2" in p:
        w2 = f64(p["lokr_w2"])
    elif "lokr_t2" in p:
        w2 = tucker(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        w2 = f64(p["lokr_w2_a"]) @ f64(p["lokr_w2_b"])
    blocks = [[w1[i, j] * w2 for j in range(w1.shape[1])] for i in range(w1.shape[0])]
    return np.concatenate([np.concatenate(row, 1) for row in blocks], 0)


def locon(p: dict[str, Tensor]) -> Any:
    up, down = p["lora_up.weight"].flatten(1).T, p["lora_down.weight"].flatten(1)
    return tucker(p["lora_mid.weight"], up, down)


CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], Any, int | None]] = {
    "loha": (MATRIX, LOHA, loha, 3),
    "loha, flat kernel": (CONVOLUTION, LOHA_FLAT, loha, 3),
    "loha, tucker": (CONVOLUTION, LOHA_TUCKER, loha, 3),
    "lokr, whole": (MATRIX, {"lokr_w1": (8, 4), "lokr_w2": (32, 8)}, lokr, None),
    "lokr, both low": (
        MATRIX, {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 8)}, lokr, 2,
    ),
    "lokr, kernel": (CONVOLUTION, {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 4), "lokr_w2": (8, 8, 3, 3)}, lokr, 2),
    "lokr, flat kernel": (CONVOLUTION, {"lokr_w1": (8, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 72)}, lokr, 2),
    "lokr, tucker": (
        CONVOLUTION, {"lokr_w1": (8, 4), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 8), "lokr_w2_b": (2, 8)}, lokr, 2,
    ),
    "locon": (
        CONVOLUTION,
        {"lora_down.weight": (4, 32, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (64, 4, 1, 1)}, locon, 4,
    ),
    "difference": (CONVOLUTION, {"diff": (64, 32, 3, 3)}, lambda p: f64(p["diff"]), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_its_formula(kind: str, tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    """With an alpha of its own, at a strength, in the U-Net; where there is no rank, alpha means nothing."""
    name, shapes, formula, rank = CASES[kind]
    parts = random(3, **shapes)
    module = kohya(tiny_bundle, name)
    save_file({f"{module}.{k}": v for k, v in parts.items()} | {f"{module}.alpha": torch.tensor(1.5)}, tmp_path / "a")
    before = tiny_bundle.diffusion.network.get_parameter(f"{name}.weight")
    after = add_lora(tiny_bundle, tmp_path / "a", 0.7).diffusion.network.get_parameter(f"{name}.weight")
    expected = f64(before) + 0.7 * (1.5 / rank if rank else 1) * formula(parts).reshape(before.shape)
    assert np.abs(f64(after) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(expected - f64(before)).max() > 0.1
    # Without an alpha it is the rank.
    save_file({f"{module}.{k}": v for k, v in parts.items()}, tmp_path / "b")
    plain = read_lora(tmp_path / "b", tiny_bundle)["unet"][name].change(before)
    assert np.abs(f64(plain) - formula(parts).reshape(before.shape)).max() <= 1e-5 * np.abs(formula(parts)).max()


def test_several_kinds_in_both_networks_with_biases_and_norms(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    text = random(1, hada_w1_a=(64, 2), hada_w1_b=(2, 32), hada_w2_a=(64, 2), hada_w2_b=(2, 32))
    tensors = {f"{kohya(tiny_bundle, TEXT, 'text')}.{k}": v.half() for k, v in text.items()}
    unet = random(2, diff=(64, 32, 3, 3), diff_b=(64,))
    tensors |= {f"{kohya(tiny_bundle, CONVOLUTION)}.{k}": v for k, v in unet.items()}
    norm = random(3, w_norm=(32,), b_norm=(32,))
    tensors |= {f"{kohya(tiny_bundle, NORM)}.{k}": v for k, v in norm.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    changed = add_lora(tiny_bundle, tmp_path / "x.safetensors", 0.5)

    def moved(part: str, name: str) -> Tensor:
        return changed.networks()[part].get_parameter(name) - tiny_bundle.networks()[part].get_parameter(name)

    for name, value in (
        (f"{CONVOLUTION}.weight", unet["diff"]), (f"{CONVOLUTION}.bias", unet["diff_b"]),
        (f"{NORM}.weight", norm["w_norm"]), (f"{NORM}.bias", norm["b_norm"]),
    ):  # fmt: skip
        assert torch.allclose(moved("unet", name), 0.5 * value, atol=1e-6), name
    half = {k: v.half() for k, v in text.items()}
    assert np.abs(f64(moved("text", f"{TEXT}.weight")) - 0.5 * loha(half)).max() < 1e-5
    same = tiny_bundle.diffusion.network.get_parameter(f"{MATRIX}.weight")
    assert changed.diffusion.network.get_parameter(f"{MATRIX}.weight") is same  # shared, not copied


class Two(nn.Module):
    """Layers with the shapes and weights of the model's, for PEFT to adapt."""

    def __init__(self, bundle: ModelBundle) -> None:
        super().__init__()
        self.matrix, self.convolution = nn.Linear(32, 256), nn.Conv2d(32, 64, 3, padding=1)
        with torch.no_grad():
            self.matrix.weight.copy_(bundle.diffusion.network.get_parameter(f"{MATRIX}.weight"))
            self.convolution.weight.copy_(bundle.diffusion.network.get_parameter(f"{CONVOLUTION}.weight"))


@pytest.mark.parametrize("kind", ["LoHa", "LoHa tucker", "LoKr", "LoKr low", "LoKr tucker", "DoRA"])
def test_what_peft_makes_of_it(kind: str, tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    import peft

    common: dict[str, Any] = {"target_modules": ["matrix", "convolution"], "r": 3}
    effective = {"use_effective_conv2d": "tucker" in kind, "alpha": 2, "init_weights": False}
    config: Any
    match kind.split()[0]:
        case "LoHa":
            config = peft.LoHaConfig(**common, **effective)
        case "LoKr":
            config = peft.LoKrConfig(**common, **effective, decompose_both="low" in kind)
        case _:
            config = peft.LoraConfig(**common, lora_alpha=2, use_dora=True, init_lora_weights=False)
    model: Any = peft.get_peft_model(Two(tiny_bundle), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif any(word in name for word in ("hada", "lokr", "lora")):
                parameter.copy_(0.5 * torch.randn_like(parameter))
    tensors: dict[str, Tensor] = {}
    for name, value in peft.get_peft_model_state_dict(model).items():
        layer, _, suffix = name.removeprefix("base_model.model.").partition(".")
        theirs = layer_names(tiny_bundle)["unet"][MATRIX if layer == "matrix" else CONVOLUTION]
        tensors[f"unet.{theirs}.{suffix}"] = value.contiguous()
    for layer in {name.partition(".hada")[0].partition(".lokr")[0].partition(".lora")[0] for name in tensors}:
        tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "peft.safetensors")
    ours = add_lora(tiny_bundle, tmp_path / "peft.safetensors").diffusion.network
    merged = model.merge_and_unload()
    for name, layer in ((MATRIX, merged.matrix), (CONVOLUTION, merged.convolution)):
        weight = ours.get_parameter(f"{name}.weight")
        assert float((weight - layer.weight).abs().max()) <= 1e-5, name
        assert float((weight - tiny_bundle.diffusion.network.get_parameter(f"{name}.weight")).abs().max()) > 0.1, name


@pytest.mark.parametrize("axis", [0, 1])
def test_a_dora_has_lengths_of_rows_or_of_columns(axis: int, tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    """LyCORIS writes either; the length given is that of the adapted weight. Strength 0 changes nothing."""
    shape = [1, 1, 1, 1]
    shape[axis] = (64, 32)[axis]
    p = random(6, down=(4, 32, 3, 3), up=(64, 4, 1, 1))
    magnitude = torch.rand(shape) + 0.5
    module = kohya(tiny_bundle, CONVOLUTION)
    save_file(
        {
            f"{module}.lora_down.weight": p["down"],
            f"{module}.lora_up.weight": p["up"],
            f"{module}.dora_scale": magnitude,
        },
        tmp_path / "x",
    )
    before = tiny_bundle.diffusion.network.get_parameter(f"{CONVOLUTION}.weight")
    after = add_lora(tiny_bundle, tmp_path / "x").diffusion.network.get_parameter(f"{CONVOLUTION}.weight")
    other = tuple(i for i in range(4) if i != axis)
    lengths = np.sqrt((f64(after) ** 2).sum(other))
    assert np.allclose(lengths, magnitude.flatten().double().numpy(), rtol=1e-5)
    moved = f64(before) + np.tensordot(f64(p["up"].flatten(1)), f64(p["down"]), 1)
    expected = moved / np.sqrt((moved**2).sum(other, keepdims=True)) * f64(magnitude)
    assert np.abs(f64(after) - expected).max() <= 1e-6
    none = add_lora(tiny_bundle, tmp_path / "x", 0.0).diffusion.network.get_parameter(f"{CONVOLUTION}.weight")
    assert torch.equal(none, before)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"hada_w1_a": (64, 3), "hada_w1_b": (3, 288)}, "hada_w1_a is there, its w2_a and w2_b part is not"),
        ({**LOHA_TUCKER, "hada_t1": None}, "its t1 part is not"),
        ({"lokr_w1": (8, 4), "lokr_w2_a": (8, 2)}, "its lokr_w2 part is not"),
        ({"lokr_w1": (8, 4), "lokr_w2": (8, 9)}, "do not fit the layer's weight [64, 32, 3, 3]: it was made"),
        ({"diff": (64, 32, 3, 3), "lokr_w1": (8, 4)}, "among the parts of two adapters"),
        ({"dora_scale": (64, 1, 1, 1)}, "without an adapter"),
        ({"diff": (64, 32, 3, 3), "dora_scale": (63, 1, 1, 1)}, "expected a length for each row or column"),
        ({"diff_b": (63,)}, "do not fit the layer's bias [64]"),
        ({"oft_blocks": (4, 8, 8)}, "belong to no layer of tiny"),
        ({"oft_blocks": (4, 8, 8)}, "an OFT, which turns weights"),
        ({"on_input": (1,)}, "an (IA)3"),
        ({"a1.weight": (4, 4)}, "a GLoRA"),
        ({"hada_w1_a": (0, 3), "hada_w1_b": (3, 4), "hada_w2_a": (3, 4), "hada_w2_b": (3, 4)}, "not as floats"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(
    shapes: dict[str, tuple[int, ...] | None], said: str, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    module = kohya(tiny_bundle, CONVOLUTION)
    save_file({f"{module}.{k}": torch.zeros(v) for k, v in shapes.items() if v is not None}, tmp_path / "x")
    with pytest.raises(CheckpointError) as error:
        read_lora(tmp_path / "x", tiny_bundle)
    assert said in str(error.value) and "\n" not in str(error.value)
