"""Files that hold something else: said in words, from the names alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from langevin.checkpoints.describe import describe
from langevin.checkpoints.loader import load_bundle
from langevin.checkpoints.recognise import Kind, recognise
from langevin.checkpoints.tensorfile import TensorInfo
from langevin.errors import CheckpointError
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL

UNET = "model.diffusion_model."
FILES: dict[str, tuple[list[str], Kind, str]] = {
    "sdxl": (
        [f"{UNET}input_blocks.0.0.weight", f"{UNET}label_emb.0.0.weight", "conditioner.embedders.0.transformer.x"],
        Kind.FOREIGN,
        "Stable Diffusion XL",
    ),
    "sd3": ([f"{UNET}joint_blocks.0.context_block.attn.qkv.weight"], Kind.FOREIGN, "Stable Diffusion 3"),
    "flux": (["double_blocks.0.img_attn.qkv.weight"], Kind.FOREIGN, "FLUX"),
    "flux in the old prefix": ([f"{UNET}double_blocks.0.img_attn.qkv.weight"], Kind.FOREIGN, "FLUX"),
    "video": ([f"{UNET}input_blocks.1.1.time_stack.0.norm1.weight"], Kind.FOREIGN, "a video diffusion model"),
    "dit": (["t_embedder.mlp.0.weight"], Kind.FOREIGN, "a diffusion transformer"),
    "llama": (["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"], Kind.FOREIGN, "a language model"),
    "gpt2": (["transformer.h.0.attn.c_attn.weight"], Kind.FOREIGN, "a language model"),
    "t5": (["encoder.block.0.layer.0.SelfAttention.q.weight"], Kind.FOREIGN, "a T5 text encoder"),
    "esrgan": (["body.0.rdb1.conv1.weight", "conv_body.weight"], Kind.FOREIGN, "an upscaler network (ESRGAN)"),
    "kohya lora": (
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_text_model_x.lora_up.weight"],
        Kind.LORA,
        "a LoRA",
    ),
    "peft lora": (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], Kind.LORA, "a LoRA"),
    "old diffusers lora": (["down_blocks.0.attn1.processor.to_q_lora.down.weight"], Kind.LORA, "a LoRA"),
    "loha": (["lora_unet_mid_block_resnets_0_conv1.hada_w1_a"], Kind.LORA, "a LyCORIS adapter (LoHa, LoKr ...)"),
    "vae": (["encoder.down.0.block.0.conv1.weight"], Kind.VAE, "an autoencoder (VAE) in the original layout"),
    "diffusers vae": (
        ["encoder.down_blocks.0.resnets.0.conv1.weight"],
        Kind.VAE_DIFFUSERS,
        "an autoencoder (VAE) in the diffusers layout",
    ),
    "diffusers unet": (
        ["down_blocks.0.resnets.0.time_emb_proj.weight", "conv_in.weight"],
        Kind.UNET_DIFFUSERS,
        "a U-Net in the diffusers layout",
    ),
    "clip": (
        ["text_model.embeddings.token_embedding.weight"],
        Kind.TEXT,
        "a CLIP text encoder in the Hugging Face layout",
    ),
    "openclip": (
        ["transformer.resblocks.0.ln_1.weight"],
        Kind.TEXT_OPENCLIP,
        "a CLIP text encoder in OpenCLIP's layout",
    ),
    "diffusers controlnet": (
        ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"],
        Kind.CONTROLNET_DIFFUSERS,
        "a ControlNet in the diffusers layout",
    ),
    "nothing": (["weight"], Kind.UNKNOWN, "tensors of no known model"),
}


@pytest.mark.parametrize("name", FILES)
def test_foreign_files_are_named(tmp_path: Path, name: str) -> None:
    names, kind, words = FILES[name]
    contents = recognise({n: TensorInfo("F16", (4, 4)) for n in names})
    assert (contents.kind, contents.words) == (kind, words)
    path = tmp_path / "x.safetensors"
    save_file({n: torch.zeros(4, 4) for n in names}, path)
    with pytest.raises(CheckpointError, match=r"; expected a Stable Diffusion 1\.x / 2\.x model") as error:
        load_bundle(path)
    assert words in str(error.value) and "\n" not in str(error.value)
    facts = describe(path)
    assert facts["kind"] == kind and facts["what"] == words


@pytest.mark.parametrize(("shape", "vectors"), [((768,), 1), ((4, 768), 4), ((2, 1024), 2)])
def test_embeddings_are_recognised_by_their_size(tmp_path: Path, shape: tuple[int, ...], vectors: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"<cat-toy>": torch.zeros(shape)}, path)
    facts = describe(path)
    assert facts["kind"] == "embedding" and facts["vectors"] == vectors
    assert facts["for"] == ("Stable Diffusion 1.x" if shape[-1] == 768 else "Stable Diffusion 2.x")
    with pytest.raises(CheckpointError, match="a textual-inversion embedding; expected"):
        load_bundle(path)


def test_facts_about_a_lora(tmp_path: Path) -> None:
    unet, text = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0", "lora_te_text_model_encoder_layers_0"
    tensors = {
        f"{unet}_attn2_to_k.lora_down.weight": torch.zeros(8, 768),
        f"{unet}_attn2_to_k.lora_up.weight": torch.zeros(320, 8),
        f"{unet}_attn1_to_k.lora_down.weight": torch.zeros(4, 320),
        f"{unet}_attn1_to_k.lora_up.weight": torch.zeros(320, 4),
        f"{text}_mlp_fc1.lora_down.weight": torch.zeros(8, 768),
        f"{text}_mlp_fc1.lora_up.weight": torch.zeros(3072, 8),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"sshs_model_hash": "abc", "ss_tag": "x" * 1000})
    facts = describe(path)
    assert facts["ranks"] == {"4": 1, "8": 2} and facts["layers"] == {"unet": 2, "text_encoder": 1}
    assert facts["for"] == "Stable Diffusion 1.x" and facts["stated_hash"] == "abc"
    assert facts["metadata"]["ss_tag"] == "x" * 200 + "... (1,000 characters)"
    assert facts["adapters"] == {"LoRA": 3} and facts["alpha"] == "none: that of each layer is its rank"


def test_facts_about_adapters_of_several_kinds(tmp_path: Path) -> None:
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    shapes: dict[str, tuple[int, ...]] = {
        f"{block}_attn2_to_k.hada_w1_a": (320, 8), f"{block}_attn2_to_k.hada_w1_b": (8, 1024),
        f"{block}_attn2_to_k.hada_w2_a": (320, 8), f"{block}_attn2_to_k.hada_w2_b": (8, 1024),
        f"{block}_attn2_to_k.alpha": (),
        f"{block}_ff_net_2.lokr_w1": (8, 8), f"{block}_ff_net_2.lokr_w2": (40, 160),
        f"{block}_attn1_to_q.lora_down.weight": (4, 320), f"{block}_attn1_to_q.lora_up.weight": (320, 4),
        f"{block}_attn1_to_q.dora_scale": (320, 1),
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, {"ss_network_alpha": "4"})
    facts = describe(path)
    assert facts["adapters"] == {"LoHa": 1, "LoKr": 1, "DoRA (LoRA)": 1} and facts["ranks"] == {"4": 1, "8": 1}
    assert facts["for"] == "Stable Diffusion 2.x" and facts["alpha"] == "each layer's own (1), stated as 4"


def test_facts_about_an_autoencoder(tmp_path: Path) -> None:
    network = AutoencoderKL(AutoencoderConfig(base_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1))
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    facts = describe(tmp_path / "x.safetensors")
    assert facts["what"] == "an autoencoder (VAE) in the original layout"
    assert facts["latents"] == {"channels": 4, "factor": 4}
