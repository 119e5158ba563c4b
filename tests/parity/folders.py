"""A tiny Stable Diffusion with random weights, made by diffusers and saved as its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import transformers

from langevin.model.tokenizer import _standard_vocabulary

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "prediction_type": "v_prediction",
}
"""With a random network of this prediction type the latents keep the size of real ones."""

UNET: dict[str, Any] = {
    "block_out_channels": (32, 64), "layers_per_block": 2, "cross_attention_dim": 32, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}  # fmt: skip


def tokenizer(folder: Path) -> Any:
    """CLIP's."""
    vocabulary, merges = _standard_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges), encoding="utf-8")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**names, "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def components(folder: Path, *, in_channels: int = 4) -> dict[str, Any]:
    """The parts of a pipeline, with cells of 8 pixels. folder: for the tokenizer's files."""
    return {
        "unet": diffusers.UNet2DConditionModel(
            **UNET, in_channels=in_channels, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), sample_size=4
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
            )
        ),
        "tokenizer": tokenizer(folder),
        "scheduler": diffusers.DDIMScheduler(**SCHEDULER),
    }  # fmt: skip
