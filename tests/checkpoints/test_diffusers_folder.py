"""Folders: what diffusers saves loads here, what is written here loads in diffusers, with equal outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import tiny

from langevin.checkpoints.controlnets import write_control_file, write_control_folder
from langevin.checkpoints.folder_writer import write_folder
from langevin.checkpoints.loader import load_bundle, load_controlnet, open_checkpoint, open_control
from langevin.checkpoints.original import write_original
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError
from langevin.model.bundle import ModelBundle

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 48, "attention_head_dim": 4},
    "sd2": {"cross_attention_dim": 48, "attention_head_dim": [2, 4], "use_linear_projection": True},
    "inpainting": {"cross_attention_dim": 48, "attention_head_dim": 4, "in_channels": 9},
    "upscaler": {
        "cross_attention_dim": 48,
        "attention_head_dim": 8,
        "use_linear_projection": True,
        "in_channels": 7,
        "num_class_embeds": 1000,
        "only_cross_attention": [True, False],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


def peer(kind: str) -> tuple[Any, Any, Any]:
    """diffusers' and transformers' own networks, every weight random."""
    unet = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            **UNETS[kind],
        }
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        scaling_factor=0.08333 if kind == "upscaler" else 0.18215,
        sample_size=16,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=tiny.VOCABULARY,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=64,
            hidden_act="quick_gelu" if kind == "sd1" else "gelu",
            eos_token_id=tiny.VOCABULARY - 1,
            bos_token_id=tiny.VOCABULARY - 2,
            pad_token_id=0,
        )
    )
    for seed, network in enumerate((unet, vae, text)):
        tiny.random_network(network, seed)
    return unet, vae, text


def save_peer(kind: str, folder: Path, tokenizer_folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    unet, vae, text = peer(kind)
    v = {"prediction_type": "v_prediction"} if kind in ("sd2", "upscaler") else {}
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **v
    )
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tokenizer_folder),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, **options)
    return unet, vae, text


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer that our writer makes for a small vocabulary."""
    from langevin.checkpoints.folder_writer import _tokenizer_texts

    root = tmp_path_factory.mktemp("tokenizer")
    (root / "tokenizer").mkdir()
    for name, text in _tokenizer_texts(tiny.TOKENIZER).items():
        (root / name).write_text(text, encoding="utf-8")
    return root / "tokenizer"


@pytest.fixture(scope="session")
def peer_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A 1.x folder as diffusers saves it."""
    folder = tmp_path_factory.mktemp("peer") / "model"
    save_peer("sd1", folder, tokenizer_folder)
    return folder


def files(root: Path) -> dict[str, bytes]:
    """All but the tokenizer's."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "tokenizer"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(paths)}


@torch.inference_mode()
def same_as_peer(bundle: ModelBundle, unet: Any, vae: Any, text: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    assert bundle.text is not None and bundle.autoencoder is not None
    tokens = bundle.text.tokens(["a red apple", "a house"])
    context = bundle.text.network(tokens, bundle.text.layer).states
    close(context, text(tokens).last_hidden_state)
    config = bundle.diffusion.network.config
    z = torch.randn(2, config.in_channels, 8, 6, generator=generator)
    t = torch.tensor([17.0, 930.0])
    labels = torch.tensor([20, 350]) if config.num_classes else None
    ours = bundle.diffusion.network(z, t, context=context, labels=labels)
    close(ours, unet(z, t, context, class_labels=labels).sample)
    latent, image = torch.randn(1, 4, 6, 4, generator=generator), torch.randn(1, 3, 16, 24, generator=generator)
    scale = vae.config.scaling_factor
    close(bundle.autoencoder.decode(latent), vae.decode(latent / scale).sample)
    close(bundle.autoencoder.encode(image), vae.encode(image).latent_dist.mean * scale)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


# -- from diffusers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNETS)
def test_what_diffusers_saves_gives_equal_outputs_here(tmp_path: Path, tokenizer_folder: Path, kind: str) -> None:
    peers = save_peer(kind, tmp_path / "model", tokenizer_folder)
    bundle = load_bundle(tmp_path / "model")
    same_as_peer(bundle, *peers)
    assert bundle.info.prediction is (Prediction.V if kind in ("sd2", "upscaler") else Prediction.EPSILON)
    assert bundle.info.default_size == (16, 16) and bundle.info.format == "diffusers"
    assert bundle.text is not None and bundle.text.tokenizer.to_json() == tiny.TOKENIZER.to_json()
    # One file of it, and back: the weights' files are the same bytes.
    write_original(open_checkpoint(tmp_path / "model"), tmp_path / "one.safetensors")
    tiny.same_outputs(load_bundle(tmp_path / "one.safetensors"), bundle)
    write_folder(open_checkpoint(tmp_path / "one.safetensors"), tmp_path / "back")
    before, after = files(tmp_path / "model"), files(tmp_path / "back")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_sharded_weights_and_variants(tmp_path: Path, tokenizer_folder: Path, peer_folder: Path) -> None:
    save_peer("sd1", tmp_path / "sharded", tokenizer_folder, max_shard_size="400KB")
    shards = list((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    bundle = load_bundle(tmp_path / "sharded")
    tiny.same_outputs(bundle, load_bundle(peer_folder))
    assert len(bundle.info.files) > 3
    half = tmp_path / "half"
    shutil.copytree(peer_folder, half)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(peer_folder, safety_checker=None).to(torch.float16)
    pipeline.save_pretrained(half, variant="fp16")
    assert (half / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert load_bundle(half, dtype="float16").info.stored_dtype == "F16"
    assert load_bundle(half, dtype="float32").info.stored_dtype == "F32"
    for path in half.rglob("*.safetensors"):
        if "fp16" not in path.name:
            path.unlink()
    assert load_bundle(half, dtype="float32").info.stored_dtype == "F16"
    pipeline.save_pretrained(tmp_path / "both", variant="fp16", max_shard_size="200KB")
    tiny.same_outputs(load_bundle(tmp_path / "both", dtype="float32"), load_bundle(half, dtype="float32"))


def test_the_variant_without_average(tmp_path: Path, peer_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(peer_folder, folder)
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    other = {name: -value for name, value in weights.items()}
    save_file(other, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    name = "out.2.weight"
    for ema, sign in (("auto", 1), (False, -1)):
        state = load_bundle(folder, ema=ema).diffusion.network.state_dict()
        assert torch.equal(state[name], sign * weights["conv_out.weight"])
    with pytest.raises(CheckpointError, match="does not say whether its weights are an average"):
        load_bundle(folder, ema=True)


def test_names_of_2022_position_ids_and_pickles(tmp_path: Path, peer_folder: Path) -> None:
    """As the first releases were: other names in the autoencoder, a table of positions, .bin files."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", "group_norm": "group_norm"}
    folder = tmp_path / "model"
    shutil.copytree(peer_folder, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for name in list(weights):
        for new, former in old.items():
            if f"attentions.0.{new}." in name:
                weights[name.replace(new, former)] = weights.pop(name)
    save_file(weights, path, {"format": "pt"})
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    text = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(text)
    prefix = "text_model." if "text_model.final_layer_norm.weight" in tensors else ""
    save_file(tensors | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}, text, {"format": "pt"})
    bundle = load_bundle(folder)
    tiny.same_outputs(bundle, load_bundle(peer_folder))
    write_original(open_checkpoint(folder), tmp_path / "one.safetensors")
    write_folder(open_checkpoint(tmp_path / "one.safetensors"), tmp_path / "back")
    for name in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "vae/config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        file = folder / part / f"{name}.safetensors"
        torch.save(load_file(file), folder / part / f"{'pytorch_model' if name == 'model' else name}.bin")
        file.unlink()
    with pytest.raises(CheckpointError, match=r"pass allow_pickle=True"):
        load_bundle(folder)
    tiny.same_outputs(load_bundle(folder, allow_pickle=True), bundle)


# -- to diffusers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sd2", "upscaler"])
def test_what_is_written_here_loads_in_diffusers(tmp_path: Path, kind: str, sd1_file: Path, sd2_file: Path) -> None:
    if kind == "upscaler":
        source = tiny.save(tmp_path / "a.safetensors", tiny.single_file(tiny.UPSCALER))
    else:
        source = sd1_file if kind == "sd1" else sd2_file
    write_folder(open_checkpoint(source), tmp_path / "model")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model" / "vae")
    text = transformers.CLIPTextModel.from_pretrained(tmp_path / "model" / "text_encoder")
    peers = [network.float().eval() for network in (unet, vae, text)]
    same_as_peer(load_bundle(source), *peers)
    same_as_peer(load_bundle(tmp_path / "model"), *peers)
    if kind == "upscaler":
        return
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    expected = "v_prediction" if kind == "sd2" else "epsilon"
    assert pipeline.scheduler.config.prediction_type == expected
    for prompt in ("a red apple", "Cats & dogs, 3 of them", ""):
        theirs = pipeline.tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
        bundle = load_bundle(source)
        assert bundle.text is not None
        assert bundle.text.tokens([prompt])[0].tolist() == theirs


def test_a_folder_gives_back_the_single_file(tmp_path: Path, sd1_file: Path, sd2_file: Path) -> None:
    ema = tiny.save(tmp_path / "ema.safetensors", tiny.single_file(ema=True))
    control = tiny.save(tmp_path / "control.safetensors", tiny.single_file(control=True))
    for source in (sd1_file, sd2_file, ema, control):
        folder, back = tmp_path / f"{source.stem}-folder", tmp_path / f"{source.stem}-back.safetensors"
        write_folder(open_checkpoint(source), folder)
        write_original(open_checkpoint(folder), back)
        assert back.read_bytes() == source.read_bytes(), source.name
        tiny.same_outputs(load_bundle(folder), load_bundle(source))


def test_without_extras_the_folder_holds_the_networks_alone(tmp_path: Path, sd2_file: Path) -> None:
    write_folder(open_checkpoint(sd2_file), tmp_path / "model", extras=False)
    assert not (tmp_path / "model" / "langevin.safetensors").exists()
    tiny.same_outputs(load_bundle(tmp_path / "model"), load_bundle(sd2_file))


# -- ControlNets ------------------------------------------------------------------------------------------------------


def test_controlnets_in_every_layout(tmp_path: Path) -> None:
    theirs = diffusers.ControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    tiny.random_network(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_controlnet(tmp_path / "theirs")
    generator = torch.Generator().manual_seed(0)
    z, context = torch.randn(1, 4, 4, 6, generator=generator), torch.randn(1, 5, 768, generator=generator)
    hint, t = torch.rand(1, 3, 32, 48, generator=generator), torch.tensor([400.0])

    @torch.inference_mode()
    def residuals(network: Any) -> list[torch.Tensor]:
        found: list[torch.Tensor] = network(z, t, network.embed_hint(hint), context=context)
        return found

    with torch.inference_mode():
        down, middle = theirs(z, t, context, hint, return_dict=False)
    expected = residuals(ours)
    for a, b in zip(expected, [*down, middle], strict=True):
        close(a, b)
    control = open_control(tmp_path / "theirs")
    write_control_file(control, tmp_path / "prefixed.safetensors")
    tensors = load_file(tmp_path / "prefixed.safetensors")
    assert all(name.startswith("control_model.") for name in tensors)
    save_file({n.removeprefix("control_model."): v for n, v in tensors.items()}, tmp_path / "bare.safetensors")
    whole = {n: v for n, v in tiny.single_file(control=True).items() if not n.startswith("control_model.")}
    tiny.save(tmp_path / "whole.safetensors", whole | tensors)
    torch.save({"state_dict": tensors}, tmp_path / "control.pth")
    for name in ("prefixed.safetensors", "bare.safetensors", "whole.safetensors", "control.pth"):
        for a, b in zip(residuals(load_controlnet(tmp_path / name, allow_pickle=True)), expected, strict=True):
            assert torch.equal(a, b), name
    write_control_folder(open_control(tmp_path / "bare.safetensors"), tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    diffusers.ControlNetModel.from_pretrained(tmp_path / "again")


def test_a_controlnet_of_differences_is_refused(tmp_path: Path) -> None:
    tensors = {n: v for n, v in tiny.single_file(control=True).items() if n.startswith("control_model.")}
    path = tiny.save(tmp_path / "c.safetensors", tensors | {"difference": torch.zeros(0)})
    with pytest.raises(CheckpointError, match="differences to a base model"):
        load_controlnet(path)
    with pytest.raises(CheckpointError, match="a Stable Diffusion model; expected a ControlNet"):
        load_controlnet(tiny.save(tmp_path / "m.safetensors", tiny.single_file()))
