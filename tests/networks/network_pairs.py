"""Copies the weights of diffusers' networks into ours, module by module.

Ours is filled with NaN first, so that a parameter which was not copied is seen in every output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from langevin.networks.attention import AttentionBlock
from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNet


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter random, those that begin as zeros or ones too; outputs stay of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("weight") and p.ndim == 1:
            p.copy_(1 + 0.2 * noise)
        elif p.ndim > 1:
            p.copy_(noise / math.sqrt(p[0].numel()))
        else:
            p.copy_(0.2 * noise)


@torch.no_grad()
def forget(module: nn.Module) -> None:
    for p in module.parameters():
        p.fill_(math.nan)


def epsilons(module: nn.Module) -> dict[str, float]:
    """What the norms add to the variance: too little to be seen in the outputs of random weights."""
    return {name: m.eps for name, m in module.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)}


@torch.no_grad()
def copy(ours: Any, theirs: Any) -> None:
    """Parameters of the same names; 1x1 convolutions and linear layers may stand for each other."""
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert mine.keys() == other.keys()
    assert epsilons(ours) == epsilons(theirs)
    for name, p in mine.items():
        assert p.squeeze().shape == other[name].squeeze().shape, name
        p.copy_(other[name].reshape(p.shape))


def copy_res_block(ours: Any, theirs: Any) -> None:
    copy(ours.in_layers[0], theirs.norm1)
    copy(ours.in_layers[2], theirs.conv1)
    copy(ours.emb_layers[1], theirs.time_emb_proj)
    copy(ours.out_layers[0], theirs.norm2)
    copy(ours.out_layers[3], theirs.conv2)
    if theirs.conv_shortcut is not None:
        copy(ours.skip_connection, theirs.conv_shortcut)


@torch.no_grad()
def copy_attention(ours: Any, theirs: Any) -> None:
    if not isinstance(ours, AttentionBlock):
        copy(ours, theirs)
        return
    copy(ours.norm, theirs.group_norm)
    copy(ours.proj_out, theirs.to_out[0])
    for part in ("weight", "bias"):
        rows = [
            getattr(linear, part).unflatten(0, (ours.heads, -1)) for linear in (theirs.to_q, theirs.to_k, theirs.to_v)
        ]
        target = getattr(ours.qkv, part)
        target.copy_(torch.stack(rows, 1).reshape(target.shape))  # head by head: its q, k and v


def copy_encoder(ours: Any, theirs: Any) -> None:
    copy(ours.time_embed[0], theirs.time_embedding.linear_1)
    copy(ours.time_embed[2], theirs.time_embedding.linear_2)
    stages = iter(ours.input_blocks)
    copy(next(stages)[0], theirs.conv_in)
    for level in theirs.down_blocks:
        for i, res_block in enumerate(level.resnets):
            stage = next(stages)
            copy_res_block(stage[0], res_block)
            if hasattr(level, "attentions"):
                copy_attention(stage[1], level.attentions[i])
        if level.downsamplers:
            copy(next(stages)[0].op, level.downsamplers[0].conv)
    assert not list(stages)
    copy_res_block(ours.middle_block[0], theirs.mid_block.resnets[0])
    copy_res_block(ours.middle_block[-1], theirs.mid_block.resnets[1])
    if len(ours.middle_block) == 3:
        copy_attention(ours.middle_block[1], theirs.mid_block.attentions[0])


def copy_unet(ours: UNet, theirs: Any) -> None:
    forget(ours)
    copy_encoder(ours, theirs)
    if ours.config.num_classes is not None:
        copy(ours.label_emb, theirs.class_embedding)
    stages = iter(ours.output_blocks)
    for level in theirs.up_blocks:
        for i, res_block in enumerate(level.resnets):
            stage: Any = next(stages)
            copy_res_block(stage[0], res_block)
            if hasattr(level, "attentions"):
                copy_attention(stage[1], level.attentions[i])
        if level.upsamplers:
            copy(stage[-1].conv, level.upsamplers[0].conv)
    assert not list(stages)
    copy(ours.out[0], theirs.conv_norm_out)
    copy(ours.out[2], theirs.conv_out)


def copy_controlnet(ours: ControlNet, theirs: Any) -> None:
    forget(ours)
    copy_encoder(ours, theirs)
    hint = theirs.controlnet_cond_embedding
    convolutions = [layer for layer in ours.input_hint_block if isinstance(layer, nn.Conv2d)]
    for mine, other in zip(convolutions, [hint.conv_in, *hint.blocks, hint.conv_out], strict=True):
        copy(mine, other)
    for zero_conv, other in zip(ours.zero_convs, theirs.controlnet_down_blocks, strict=True):
        copy(zero_conv[0], other)  # type: ignore[index]
    copy(ours.middle_block_out[0], theirs.controlnet_mid_block)


def copy_resnet_block(ours: Any, theirs: Any) -> None:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        copy(getattr(ours, name), getattr(theirs, name))
    if theirs.conv_shortcut is not None:
        copy(ours.nin_shortcut, theirs.conv_shortcut)


def copy_middle(ours: Any, theirs: Any) -> None:
    copy_resnet_block(ours.block_1, theirs.resnets[0])
    copy_resnet_block(ours.block_2, theirs.resnets[1])
    attention = theirs.attentions[0]
    for mine, other in [
        (ours.attn_1.norm, attention.group_norm),
        (ours.attn_1.q, attention.to_q),
        (ours.attn_1.k, attention.to_k),
        (ours.attn_1.v, attention.to_v),
        (ours.attn_1.proj_out, attention.to_out[0]),
    ]:
        copy(mine, other)


def copy_autoencoder(ours: AutoencoderKL, theirs: Any) -> None:
    forget(ours)
    for level, other in zip(ours.encoder.down, theirs.encoder.down_blocks, strict=True):
        for i, res_block in enumerate(other.resnets):
            copy_resnet_block(level.block[i], res_block)  # type: ignore[index,union-attr]
        if other.downsamplers:
            copy(level.downsample.conv, other.downsamplers[0].conv)  # type: ignore[union-attr]
    for level, other in zip(reversed(ours.decoder.up), theirs.decoder.up_blocks, strict=True):
        for i, res_block in enumerate(other.resnets):
            copy_resnet_block(level.block[i], res_block)  # type: ignore[index,union-attr]
        if other.upsamplers:
            copy(level.upsample.conv, other.upsamplers[0].conv)  # type: ignore[union-attr]
    for half in ("encoder", "decoder"):
        mine, other = getattr(ours, half), getattr(theirs, half)
        copy(mine.conv_in, other.conv_in)
        copy_middle(mine.mid, other.mid_block)
        copy(mine.norm_out, other.conv_norm_out)
        copy(mine.conv_out, other.conv_out)
    copy(ours.quant_conv, theirs.quant_conv)
    copy(ours.post_quant_conv, theirs.post_quant_conv)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; NaN if there is one anywhere."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
