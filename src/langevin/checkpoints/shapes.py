"""Architectures read off tensor names and shapes alone. Needs no torch; each result is a config's keyword arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langevin.checkpoints.tensorfile import TensorInfo
from langevin.errors import CheckpointError

Tensors = Mapping[str, TensorInfo]
Shape = dict[str, Any]


class UnknownArchitectureError(CheckpointError):
    """The tensors are not laid out as this kind of network is."""


def unet_shape(tensors: Tensors) -> Shape:
    """UNetConfig's arguments from the original names without prefix.

    num_heads and head_channels are both None where convention does not tell them: 8 heads with a context of 768 or with
    labels (x4 upscaler), heads of 64 channels with a context of 1024.
    """
    shape = _encoder_shape(tensors)
    shape["out_channels"] = size(tensors, "out.2.weight", 0)
    return shape


def controlnet_shape(tensors: Tensors) -> tuple[Shape, int]:
    """The arguments of a ControlNet's UNetConfig, and its number of hint channels."""
    shape = _encoder_shape(tensors)
    return shape, size(tensors, "input_hint_block.0.weight", 1)


def _encoder_shape(tensors: Tensors) -> Shape:
    model_channels, in_channels = (size(tensors, "input_blocks.0.0.weight", i) for i in (0, 1))
    widths: list[list[int]] = [[]]
    attention: list[list[bool]] = [[]]
    cross_only: list[bool] = [False]
    stage = 1
    while any(f"input_blocks.{stage}.0.{leaf}" in tensors for leaf in ("op.weight", "in_layers.2.weight")):
        if f"input_blocks.{stage}.0.op.weight" in tensors:
            widths.append([])
            attention.append([])
            cross_only.append(False)
        else:
            widths[-1].append(size(tensors, f"input_blocks.{stage}.0.in_layers.2.weight", 0))
            attention[-1].append(f"input_blocks.{stage}.1.norm.weight" in tensors)
            to_k = tensors.get(f"input_blocks.{stage}.1.transformer_blocks.0.attn1.to_k.weight")
            # Where the context is as wide as the features the shapes are silent: self-attention is the rule.
            cross_only[-1] |= to_k is not None and to_k.shape[0] != to_k.shape[-1]
        stage += 1
    blocks = {len(level) for level in widths}
    if len(blocks) != 1 or 0 in blocks:
        raise UnknownArchitectureError(f"a U-Net with {'/'.join(str(len(w)) for w in widths)} residual blocks a level")
    if any(len(set(level)) != 1 or level[0] % model_channels for level in widths):
        raise UnknownArchitectureError(f"a U-Net with levels of {[w[0] for w in widths]} channels")
    if any(len(set(level)) != 1 for level in attention):
        raise UnknownArchitectureError("a U-Net with attention in a part of a level")
    projection = next((i for n, i in tensors.items() if re.search(r"_blocks?\.[\d.]+\.proj_in\.weight$", n)), None)
    context = next((i.shape[-1] for n, i in tensors.items() if n.endswith("attn2.to_k.weight")), None)
    labels = tensors.get("label_emb.weight")
    depths = [int(m[1]) for n in tensors if (m := re.search(r"\.transformer_blocks\.(\d+)\.norm1\.weight$", n))]
    emb = size(tensors, "input_blocks.1.0.emb_layers.1.weight", 0)
    shape: Shape = {
        "in_channels": in_channels,
        "model_channels": model_channels,
        "channel_mult": tuple(level[0] // model_channels for level in widths),
        "num_res_blocks": blocks.pop(),
        "attention_levels": tuple(level[0] for level in attention),
        "middle_attention": "middle_block.1.norm.weight" in tensors,
        "context_channels": context,
        "transformer_depth": 1 + max(depths, default=0),
        "linear_projection": projection is not None and len(projection.shape) == 2,
        "cross_attention_only_levels": tuple(cross_only) if any(cross_only) else (),
        "num_classes": None if labels is None else labels.shape[0],
        "scale_shift_norm": emb == 2 * widths[0][0],
    }
    return shape | heads_by_convention(context, labels is not None)


def heads_by_convention(context: int | None, labels: bool) -> Shape:
    """Stable Diffusion 1.x and the x4 upscaler have 8 heads, Stable Diffusion 2.x heads of 64 channels."""
    if context == 768 or (context == 1024 and labels):
        return {"num_heads": 8, "head_channels": None}
    if context == 1024:
        return {"num_heads": None, "head_channels": 64}
    return {"num_heads": None, "head_channels": None}


def autoencoder_shape(tensors: Tensors) -> Shape:
    """AutoencoderConfig's arguments from the original names without prefix."""
    base = size(tensors, "encoder.conv_in.weight", 0)
    widths: list[int] = []
    while f"encoder.down.{len(widths)}.block.0.conv1.weight" in tensors:
        widths.append(size(tensors, f"encoder.down.{len(widths)}.block.0.conv1.weight", 0))
    blocks = count(tensors, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight")
    if not widths or any(w % base for w in widths):
        raise UnknownArchitectureError(f"an autoencoder with levels of {widths} channels")
    return {
        "in_channels": size(tensors, "encoder.conv_in.weight", 1),
        "latent_channels": size(tensors, "decoder.conv_in.weight", 1),
        "base_channels": base,
        "channel_mult": tuple(w // base for w in widths),
        "num_res_blocks": blocks,
    }


def clip_text_shape(tensors: Tensors) -> Shape:
    """ClipTextConfig's arguments from the Hugging Face names, with "text_model." or (transformers 5) without it.

    Heads of 64 channels, as every published CLIP has; OpenAI's activation.
    """
    prefix = "text_model." if any(n.startswith("text_model.") for n in tensors) else ""
    vocabulary, width = (size(tensors, f"{prefix}embeddings.token_embedding.weight", i) for i in (0, 1))
    projection = tensors.get("text_projection.weight")
    return {
        "vocabulary": vocabulary,
        "width": width,
        "layers": count(tensors, re.escape(prefix) + r"encoder\.layers\.(\d+)\.layer_norm1\.weight"),
        "heads": max(1, width // 64),
        "mlp_width": size(tensors, f"{prefix}encoder.layers.0.mlp.fc1.weight", 0),
        "positions": size(tensors, f"{prefix}embeddings.position_embedding.weight", 0),
        "activation": "quick_gelu",
        "projection": None if projection is None else projection.shape[0],
        "eos_token": vocabulary - 1,
    }


def openclip_text_shape(tensors: Tensors) -> Shape:
    """ClipTextConfig's arguments from OpenCLIP's names: exact GELU."""
    vocabulary, width = (size(tensors, "token_embedding.weight", i) for i in (0, 1))
    projection = tensors.get("text_projection")
    return {
        "vocabulary": vocabulary,
        "width": width,
        "layers": count(tensors, r"transformer\.resblocks\.(\d+)\.ln_1\.weight"),
        "heads": max(1, width // 64),
        "mlp_width": size(tensors, "transformer.resblocks.0.mlp.c_fc.weight", 0),
        "positions": size(tensors, "positional_embedding", 0),
        "activation": "gelu",
        "projection": None if projection is None else projection.shape[-1],
        "eos_token": vocabulary - 1,
    }


def size(tensors: Tensors, name: str, dimension: int) -> int:
    """One side of a tensor. UnknownArchitectureError where it is not there."""
    info = tensors.get(name)
    if info is None or len(info.shape) <= dimension:
        raise UnknownArchitectureError(f"there is no {name}" if info is None else f"{name} of shape {info.shape}")
    return info.shape[dimension]


def count(tensors: Tensors, pattern: str) -> int:
    """How many numbers, from 0 without a gap, the pattern's group takes."""
    found = {int(m[1]) for name in tensors if (m := re.fullmatch(pattern, name))}
    if not found or found != set(range(len(found))):
        raise UnknownArchitectureError(f"numbers {sorted(found)[:5]} where 0, 1, ... are expected ({pattern})")
    return len(found)
