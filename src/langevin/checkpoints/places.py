"""Where each tensor of our networks lies in a file, for the naming schemes that checkpoints have.

U-Net, autoencoder and ControlNet carry the names of the original single files themselves, the text tower those of the
Hugging Face files. The other schemes are built here, from the networks' configurations, as maps from our name to a
`Place`; the same map serves for reading and for writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.clip import ClipTextConfig
from langevin.networks.unet import UNetConfig


class Place(NamedTuple):
    """Where one of our tensors lies."""

    name: str
    part: int = 0
    """It is this one of ..."""
    parts: int = 1
    """... so many equal parts of the file's tensor along its first dimension (fused queries, keys and values)."""
    transposed: bool = False
    matrix: bool = False
    """The file has a matrix where we have a 1x1 convolution. Reading takes either."""


Places = Mapping[str, Place]


def identity(names: Iterable[str], prefix: str = "") -> Places:
    """Our own names, after a prefix."""
    return {name: Place(prefix + name) for name in names}


def averaged(names: Iterable[str]) -> Places:
    """The moving average of the U-Net as the original code names it: one flat name without dots for each weight."""
    return {name: Place("model_ema." + f"diffusion_model.{name}".replace(".", "")) for name in names}


def short_clip(names: Iterable[str], prefix: str = "") -> Places:
    """The text tower as transformers 5 holds it in memory: without "text_model."."""
    return {name: Place(prefix + name.removeprefix("text_model.")) for name in names}


# -- diffusers --------------------------------------------------------------------------------------------------------

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE_ATTENTION_2022 = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def diffusers_unet(names: Iterable[str], config: UNetConfig) -> Places:
    """The U-Net in a diffusers folder."""
    modules = dict([*_encoder(config), *_middle(config), *_decoder(config)])
    modules |= {"label_emb": "class_embedding", "out.0": "conv_norm_out", "out.2": "conv_out"}
    return _renamed(names, modules)


def diffusers_controlnet(names: Iterable[str], config: UNetConfig) -> Places:
    """The ControlNet in a diffusers folder."""
    modules = dict([*_encoder(config), *_middle(config)])
    stages = 1 + len(config.channel_mult) * (config.num_res_blocks + 1) - 1
    modules |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(stages)}
    modules |= {f"input_hint_block.{2 * i + 2}": f"controlnet_cond_embedding.blocks.{i}" for i in range(6)}
    modules |= {
        "middle_block_out.0": "controlnet_mid_block",
        "input_hint_block.0": "controlnet_cond_embedding.conv_in",
        "input_hint_block.14": "controlnet_cond_embedding.conv_out",
    }
    return _renamed(names, modules)


def diffusers_vae(names: Iterable[str], config: AutoencoderConfig, *, names_of_2022: bool = False) -> Places:
    """The autoencoder in a diffusers folder; `names_of_2022`: with the attention's names of the first releases."""
    attention = _VAE_ATTENTION_2022 if names_of_2022 else _VAE_ATTENTION
    levels = len(config.channel_mult)
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    matrices = set()
    for side, stack, count in (
        ("encoder", "down", config.num_res_blocks),
        ("decoder", "up", config.num_res_blocks + 1),
    ):
        for name in ("conv_in", "conv_out"):
            modules[f"{side}.{name}"] = f"{side}.{name}"
        modules[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        modules |= _vae_block(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0")
        modules |= _vae_block(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1")
        for ours, theirs in attention.items():
            modules[f"{side}.mid.attn_1.{ours}"] = f"{side}.mid_block.attentions.0.{theirs}"
            if ours != "norm":
                matrices.add(f"{side}.mid.attn_1.{ours}")
        for level in range(levels):
            # Their decoder is numbered in the order it runs, ours by resolution.
            theirs = f"{side}.{stack}_blocks.{level if side == 'encoder' else levels - 1 - level}"
            for i in range(count):
                modules |= _vae_block(f"{side}.{stack}.{level}.block.{i}", f"{theirs}.resnets.{i}")
            modules[f"{side}.{stack}.{level}.{stack}sample.conv"] = f"{theirs}.{stack}samplers.0.conv"
    return _renamed(names, modules, matrices)


def _vae_block(ours: str, theirs: str) -> dict[str, str]:
    leaves = {n: n for n in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in leaves.items()}


def _res_block(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for a, b in _RES_BLOCK.items():
        yield f"{ours}.{a}", f"{theirs}.{b}"


def _encoder(config: UNetConfig) -> Iterator[tuple[str, str]]:
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    stage = 1
    for level in range(len(config.channel_mult)):
        for i in range(config.num_res_blocks):
            yield from _res_block(f"input_blocks.{stage}.0", f"down_blocks.{level}.resnets.{i}")
            yield f"input_blocks.{stage}.1", f"down_blocks.{level}.attentions.{i}"
            stage += 1
        if level < len(config.channel_mult) - 1:
            yield f"input_blocks.{stage}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            stage += 1


def _middle(config: UNetConfig) -> Iterator[tuple[str, str]]:
    last = 2 if config.middle_attention else 1
    yield from _res_block("middle_block.0", "mid_block.resnets.0")
    if config.middle_attention:
        yield "middle_block.1", "mid_block.attentions.0"
    yield from _res_block(f"middle_block.{last}", "mid_block.resnets.1")


def _decoder(config: UNetConfig) -> Iterator[tuple[str, str]]:
    stage = 0
    for step, level in enumerate(reversed(range(len(config.channel_mult)))):
        for i in range(config.num_res_blocks + 1):
            yield from _res_block(f"output_blocks.{stage}.0", f"up_blocks.{step}.resnets.{i}")
            attention = config.attention_levels[level]
            if attention:
                yield f"output_blocks.{stage}.1", f"up_blocks.{step}.attentions.{i}"
            if level > 0 and i == config.num_res_blocks:
                yield f"output_blocks.{stage}.{1 + attention}.conv", f"up_blocks.{step}.upsamplers.0.conv"
            stage += 1


def _renamed(names: Iterable[str], modules: Mapping[str, str], matrices: Iterable[str] = ()) -> Places:
    """Each name with the longest of its module prefixes replaced. KeyError for a name that none fits."""
    flat = set(matrices)
    places = {}
    for name in names:
        module = name
        while module not in modules:
            module = module.rpartition(".")[0]
            if not module:
                raise KeyError(name)
        matrix = module in flat and name.endswith(".weight")
        places[name] = Place(modules[module] + name[len(module) :], matrix=matrix)
    return places


# -- OpenCLIP ---------------------------------------------------------------------------------------------------------

_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def openclip(names: Iterable[str], config: ClipTextConfig, prefix: str = "") -> Places:
    """The text tower as OpenCLIP names it: queries, keys and values in one matrix, the projection transposed."""
    places = {
        "text_model.embeddings.token_embedding.weight": Place(f"{prefix}token_embedding.weight"),
        "text_model.embeddings.position_embedding.weight": Place(f"{prefix}positional_embedding"),
        "text_model.final_layer_norm.weight": Place(f"{prefix}ln_final.weight"),
        "text_model.final_layer_norm.bias": Place(f"{prefix}ln_final.bias"),
        "text_projection.weight": Place(f"{prefix}text_projection", transposed=True),
    }
    for i in range(config.layers):
        ours, theirs = f"text_model.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            for part, letter in enumerate("qkv"):
                places[f"{ours}.self_attn.{letter}_proj.{kind}"] = Place(f"{theirs}.attn.in_proj_{kind}", part, 3)
            for a, b in _OPENCLIP_LAYER.items():
                places[f"{ours}.{a}.{kind}"] = Place(f"{theirs}.{b}.{kind}")
    return {name: places[name] for name in names}
