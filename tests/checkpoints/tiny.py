"""Small models with random weights whose shapes are those of the published ones where recognition looks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.checkpoints import places
from langevin.checkpoints.recognise import CONTROL, UNET, VAE
from langevin.checkpoints.safetensors_file import write_safetensors
from langevin.checkpoints.tensorfile import TensorInfo, dtype_name
from langevin.diffusion.schedule import NoiseSchedule
from langevin.model.bundle import ModelBundle
from langevin.model.tokenizer import Tokenizer
from langevin.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from langevin.networks.clip import ClipText, ClipTextConfig
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNet, UNetConfig

TOKENIZER = Tokenizer.train(["a red apple", "a house by the sea", "cats and dogs"], 560)
VOCABULARY = len(TOKENIZER)

SD1 = UNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(True, False), context_channels=768
)
INPAINTING = UNetConfig(**{**vars(SD1), "in_channels": 9})
SD2 = UNetConfig(
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(True, False),
    context_channels=1024,
    num_heads=None,
    head_channels=64,
    linear_projection=True,
)
DEPTH = UNetConfig(**{**vars(SD2), "in_channels": 5})
UPSCALER = UNetConfig(
    in_channels=7,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(False, True),
    context_channels=1024,
    num_heads=8,
    linear_projection=True,
    num_classes=1000,
    cross_attention_only_levels=(False, True),
)
CODEC = AutoencoderConfig(base_channels=32, channel_mult=(1, 2), num_res_blocks=1)
CLIP = ClipTextConfig(vocabulary=VOCABULARY, width=768, layers=2, heads=12, mlp_width=64, eos_token=VOCABULARY - 1)
OPENCLIP = ClipTextConfig(
    vocabulary=VOCABULARY,
    width=1024,
    layers=2,
    heads=16,
    mlp_width=64,
    activation="gelu",
    projection=64,
    eos_token=VOCABULARY - 1,
)


def random_network(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, the zero-initialised ones too, small enough for outputs of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.05 * noise + (1 if name.endswith("weight") else 0))
            else:
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    return network.eval().requires_grad_(False)


def schedule_tables(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """Those that the original code saves, in its dtype."""
    betas, abar = schedule.betas, schedule.abar
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    return {
        "betas": betas.float(),
        "alphas_cumprod": abar.float(),
        "alphas_cumprod_prev": before.float(),
        "sqrt_alphas_cumprod": abar.sqrt().float(),
        "posterior_variance": (betas * (1 - before) / (1 - abar)).float(),
    }


def laid_out(network: nn.Module, where: places.Places, dtype: torch.dtype) -> dict[str, Tensor]:
    """A network's tensors in a file's layout, made with torch alone."""
    out: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in network.state_dict().items():
        place = where[name]
        value = tensor.T if place.transposed else tensor
        value = value.flatten(1) if place.matrix else value
        out.setdefault(place.name, []).append((place.part, value))
    return {
        name: torch.cat([t for _, t in sorted(parts, key=lambda p: p[0])]).to(dtype).contiguous()
        for name, parts in out.items()
    }


def single_file(
    unet: UNetConfig = SD1,
    *,
    dtype: torch.dtype = torch.float16,
    ema: bool = False,
    control: bool = False,
    schedule: NoiseSchedule | None = None,
) -> dict[str, Tensor]:
    """The tensors of an original single file; a new dictionary of shared tensors."""
    tensors = dict(_weights(unet, dtype, ema, control))
    return tensors | schedule_tables(schedule or NoiseSchedule.scaled_linear())


@cache
def _weights(unet: UNetConfig, dtype: torch.dtype, ema: bool, control: bool, seed: int = 0) -> dict[str, Tensor]:
    network = UNet(unet)
    tensors = laid_out(random_network(network, seed), places.identity(network.state_dict(), UNET), dtype)
    codec = random_network(AutoencoderKL(CODEC), seed + 1)
    tensors |= laid_out(codec, places.identity(codec.state_dict(), VAE), dtype)
    openclip = unet.context_channels == 1024
    text = random_network(ClipText(OPENCLIP if openclip else CLIP), seed + 2)
    names = text.state_dict()
    if openclip:
        where = places.openclip(names, OPENCLIP, "cond_stage_model.model.")
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    else:
        where = places.identity(names, "cond_stage_model.transformer.")
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= laid_out(text, where, dtype)
    if ema:
        average = random_network(UNet(unet), seed + 10)
        tensors |= laid_out(average, places.averaged(average.state_dict()), torch.float32)
        tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7).int()}
    if control:
        net = random_network(ControlNet(unet), seed + 20)
        tensors |= laid_out(net, places.identity(net.state_dict(), CONTROL), dtype) | {"logvar": torch.zeros(1000)}
    return tensors


def save(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, order: Sequence[str] | None = None
) -> Path:
    infos = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    facts = {"format": "pt", "langevin.tokenizer": TOKENIZER.to_json(), **(metadata or {})}
    write_safetensors(path, infos, lambda name: tensors[name], metadata=facts.items(), order=order, overwrite=True)
    return path


@torch.inference_mode()
def outputs(bundle: ModelBundle) -> dict[str, Any]:
    """What every network of a bundle answers to fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    assert bundle.text is not None and bundle.autoencoder is not None
    dtype = bundle.diffusion.dtype
    context = bundle.text.network(bundle.text.tokens(["a red apple"]), bundle.text.layer).states
    config = bundle.diffusion.network.config
    z = torch.randn(1, config.in_channels, 8, 12, generator=generator).to(dtype)
    labels = torch.tensor([20]) if config.num_classes else None
    latent = torch.randn(1, 4, 4, 6, generator=generator).to(dtype)
    image = torch.randn(1, 3, 16, 24, generator=generator).to(dtype)
    return {
        "context": context,
        "unet": bundle.diffusion.network(z, torch.tensor([500.5]), context=context, labels=labels),
        "decoded": bundle.autoencoder.decode(latent),
        "encoded": bundle.autoencoder.encode(image),
    }


def same_outputs(a: ModelBundle, b: ModelBundle) -> None:
    left, right = outputs(a), outputs(b)
    for name in left:
        assert torch.isfinite(left[name]).all(), name
        assert torch.equal(left[name], right[name]), name
