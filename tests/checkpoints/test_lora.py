"""LoRA files against diffusers and PEFT: what we write they read as we mean it, and what they write we read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny
from torch import Tensor

from langevin.checkpoints.additions import add_lora, split_lora
from langevin.checkpoints.convert import convert
from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.lora import LoraLayout, LoraParts, layer_names, read_lora, write_lora
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle
from langevin.networks.lora import LoraWeights

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def adapters(bundle: ModelBundle, *, uniform: bool = False, seed: int = 3) -> LoraParts:
    """Random adapters for every linear layer and convolution. Unless `uniform`, ranks differ, and so do the alphas
    outside of attention, where diffusers reads them right."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, LoraWeights]] = {}
    for part, names in layer_names(bundle).items():
        for i, ours in enumerate(names):
            weight = bundle.networks()[part].get_parameter(f"{ours}.weight")
            rank = 2 if uniform else 2 + i % 2
            down = torch.randn((rank, *weight.shape[1:]), generator=generator) / weight[0].numel() ** 0.5
            up = torch.randn((len(weight), rank, *[1] * (weight.ndim - 2)), generator=generator) * 0.3
            alpha = 1.0 if uniform or ours.endswith((*ATTENTION, "_proj")) else 0.5 + i % 3
            parts.setdefault(part, {})[ours] = LoraWeights(down, up, alpha)
    return parts


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Path]:
    """A small model in float32, and the same as a diffusers folder."""
    unet, facts = (tiny.SD1, {}) if request.param == "sd1" else (tiny.SD2, {"modelspec.prediction_type": "v"})
    folder = tmp_path_factory.mktemp(request.param)
    path = tiny.save(folder / "model.safetensors", tiny.single_file(unet, dtype=torch.float32), facts)
    convert(path, folder / "diffusers", "diffusers")
    return load_bundle(path), folder / "diffusers"


def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)


@torch.no_grad()
def ours(bundle: ModelBundle) -> dict[str, Tensor]:
    assert bundle.text is not None
    tokens = bundle.text.tokens(["a red apple"])
    context = bundle.text.network(tokens, bundle.text.layer).states
    return {"text": context, "unet": bundle.diffusion.network(latent(), torch.tensor([500.0]), context=context)}


@torch.no_grad()
def theirs(pipe: Any, bundle: ModelBundle) -> dict[str, Tensor]:
    assert bundle.text is not None
    states = pipe.text_encoder(bundle.text.tokens(["a red apple"])).last_hidden_state
    return {"text": states, "unet": pipe.unet(latent(), 500.0, encoder_hidden_states=states).sample}


def latent() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert float((a[name] - b[name]).abs().max()) <= 1e-4, name


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert float((a[name] - b[name]).abs().max()) > 0.05, name


@pytest.mark.parametrize("layout", list(LoraLayout))
def test_diffusers_reads_our_file_as_we_do(layout: LoraLayout, pair: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    bundle, folder = pair
    # Its reader of kohya's layout takes one alpha and rank for all: see the layout's own test below.
    parts = adapters(bundle, uniform=layout is LoraLayout.KOHYA)
    path = write_lora(tmp_path / "lora.safetensors", parts, bundle, layout)
    pipe = pipeline(folder)
    same(ours(bundle), theirs(pipe, bundle))
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    changed = add_lora(bundle, path)
    same(ours(changed), theirs(pipe, bundle))
    far(ours(changed), ours(bundle))
    pipe.set_adapters(pipe.get_active_adapters(), 0.5)
    same(ours(add_lora(bundle, path, 0.5)), theirs(pipe, bundle))


def test_we_read_what_diffusers_and_peft_write(pair: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    """With alpha unlike rank, other ones for single layers, linear layers and convolutions, both networks."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    bundle, folder = pair
    pipe = pipeline(folder)
    targets = [*ATTENTION, "conv1", "conv_shortcut", "downsamplers.0.conv", "ff.net.0.proj"]
    unet = LoraConfig(
        r=3, lora_alpha=2, target_modules=targets, init_lora_weights=False,
        rank_pattern={"conv1": 2}, alpha_pattern={"attn2.to_v": 5},
    )  # fmt: skip
    text = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "fc1"], init_lora_weights=False, use_rslora=True)
    pipe.unet.add_adapter(unet)
    pipe.text_encoder.add_adapter(text)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (pipe.unet, pipe.text_encoder):
            for name, parameter in network.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        unet_lora_adapter_metadata=unet.to_dict() | {"target_modules": targets},
        text_encoder_lora_adapter_metadata=text.to_dict() | {"target_modules": ["q_proj", "fc1"]},
        weight_name="peft.safetensors",
    )
    changed = add_lora(bundle, tmp_path / "peft.safetensors")
    same(ours(changed), theirs(pipe, bundle))
    far(ours(changed), ours(bundle))


def test_a_kohya_file_has_each_layers_own_alpha_and_rank(pair: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    """The sum W + strength alpha / rank up down, taken here from the file's own tensors."""
    bundle, _ = pair
    path = write_lora(tmp_path / "kohya.safetensors", adapters(bundle), bundle, LoraLayout.KOHYA)
    tensors = load_file(path)
    changed = add_lora(bundle, path, 0.7)
    seen = 0
    for part, prefix in (("unet", "lora_unet_"), ("text", "lora_te_")):
        for name, theirs_name in layer_names(bundle)[part].items():
            module = prefix + theirs_name.replace(".", "_")
            down, up = tensors.pop(f"{module}.lora_down.weight"), tensors.pop(f"{module}.lora_up.weight")
            delta = float(tensors.pop(f"{module}.alpha")) / len(down) * torch.tensordot(up.flatten(1), down, 1)
            before = bundle.networks()[part].get_parameter(f"{name}.weight")
            after = changed.networks()[part].get_parameter(f"{name}.weight")
            assert torch.allclose(after, before + 0.7 * delta, atol=1e-6), name
            seen += 1
    assert not tensors and seen > 30
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in load_file(path)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in load_file(path)


def test_files_from_before_peft_are_read(pair: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    bundle, folder = pair
    q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    layer = "text_encoder.text_model.encoder.layers.0"
    wide = 32 if bundle.info.family == "sd1" else 64
    text = 768 if bundle.info.family == "sd1" else 1024
    generator = torch.Generator().manual_seed(2)
    tensors = {
        f"{q}.processor.{name}_lora.{half}.weight": torch.randn(shape, generator=generator)
        for name in ("to_q", "to_out")
        for half, shape in (("down", (4, wide)), ("up", (wide, 4)))
    }
    for half, shape in (("down", (4, text)), ("up", (text, 4))):
        tensors[f"{layer}.self_attn.q_proj.lora_linear_layer.{half}.weight"] = 0.05 * torch.randn(
            shape, generator=generator
        )
    save_file(tensors, tmp_path / "old.safetensors")
    pipe = pipeline(folder)
    pipe.load_lora_weights(tmp_path, weight_name="old.safetensors")
    changed = add_lora(bundle, tmp_path / "old.safetensors")
    same(ours(changed), theirs(pipe, bundle))
    far({"text": ours(changed)["text"]}, {"text": ours(bundle)["text"]})


def test_strength_nothing_and_the_original_stay(pair: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    bundle, _ = pair
    path = write_lora(tmp_path / "a.safetensors", adapters(bundle), bundle, LoraLayout.DIFFUSERS)
    before = ours(bundle)
    none = add_lora(bundle, path, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(ours(none).values(), before.values(), strict=True))
    both = add_lora(add_lora(bundle, path, 0.8), path, -0.8)
    same(ours(both), before)
    assert all(torch.equal(a, b) for a, b in zip(ours(bundle).values(), before.values(), strict=True))
    assert [a.strength for a in both.info.additions] == [0.8, -0.8] and both.info.additions[0].file.path == path


def test_both_layouts_come_back_bit_for_bit(sd1_file: Path, tmp_path: Path) -> None:
    bundle = load_bundle(sd1_file)
    parts = adapters(bundle)
    for layout in LoraLayout:
        path = write_lora(tmp_path / f"{layout}.safetensors", parts, bundle, layout)
        again = read_lora(path, bundle)
        assert {p: list(layers) for p, layers in again.items()} == {p: sorted(layers, key=list(again[p]).index)
                                                                    for p, layers in parts.items()}  # fmt: skip
        for part, layers in parts.items():
            for name, lora in layers.items():
                other = again[part][name]
                assert torch.equal(lora.down, other.down) and torch.equal(lora.up, other.up), name
                assert lora.alpha == other.alpha, name
        assert path.read_bytes() == write_lora(tmp_path / "b", again, bundle, layout, overwrite=True).read_bytes()


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{LAYER}.lora_down.weight": (4, 1024), f"{LAYER}.lora_up.weight": (32, 4)}, "made for Stable Diffusion 2.x"),
        ({f"{LAYER}.lora_down.weight": (4, 99), f"{LAYER}.lora_up.weight": (32, 4)}, "another architecture"),
        ({f"{LAYER}.lora_down.weight": (4, 768)}, "its up part is not"),
        ({"lora_te2_text_model_x.lora_down.weight": (4, 8)}, "1 of 1 tensors belong to no layer of sd1 (lora_te2_text"),
        ({"lora_te2_text_model_x.lora_down.weight": (4, 8)}, "made for Stable Diffusion XL"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, "diffusion transformer"),
        ({f"{LAYER}.hada_w1_a": (4, 8)}, "its w1_b and w2_a and w2_b part is not"),
        ({"lora_unet_nowhere_to_k.lora_down.weight": (4, 8)}, "a model of another architecture"),
        (
            {"encoder.down.0.block.0.conv1.weight": (4, 8)},
            "an autoencoder (VAE) in the original layout; expected a LoRA",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    tensors: dict[str, tuple[int, ...]], said: str, sd1_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(CheckpointError) as error:
        read_lora(path, load_bundle(sd1_file))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['"nonsense', "[1]", '{"unet.lora_alpha": "much"}', '{"unet.lora_alpha": 1e999}'])
def test_damaged_alphas_are_refused(text: str, sd1_file: Path, tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    path = tmp_path / "x.safetensors"
    tensors = {f"{name}.lora_A.weight": torch.zeros(4, 768), f"{name}.lora_B.weight": torch.zeros(32, 4)}
    save_file(tensors, path, {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match="lora_adapter_metadata"):
        read_lora(path, load_bundle(sd1_file))


def test_a_path_and_its_strength() -> None:
    assert split_lora("style.safetensors:0.8") == ("style.safetensors", 0.8)
    assert split_lora("a:b.safetensors") == ("a:b.safetensors", 1.0)
    assert split_lora("style.safetensors") == ("style.safetensors", 1.0)
    assert split_lora("c:/x.safetensors:-1") == ("c:/x.safetensors", -1.0)
