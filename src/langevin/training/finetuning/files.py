"""What a fine-tuning run leaves: files that this program and others read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from langevin.checkpoints.checkpoint import Checkpoint
from langevin.checkpoints.config import Defaults
from langevin.checkpoints.controlnets import ControlCheckpoint, write_control_file, write_control_folder
from langevin.checkpoints.embeddings import Embedding, EmbeddingLayout, write_embedding
from langevin.checkpoints.lora import LoraLayout, write_lora
from langevin.checkpoints.original import write_original
from langevin.checkpoints.places import identity
from langevin.checkpoints.recognise import EMA
from langevin.checkpoints.tensorfile import FLOATS, MemoryTensors, torch_dtype
from langevin.checkpoints.transfer import Part
from langevin.model.bundle import ModelBundle
from langevin.training.finetuning.parts import TunedControl, TunedLora, TunedWeights, TunedWord


def write_model(tuned: TunedWeights, checkpoint: Checkpoint, path: Path, defaults: Defaults) -> Path:
    """A single file laid out as the model's own was, each tensor in the precision that it had, the metadata kept; the
    given defaults are set. What did not train is taken over from the source's files; the moving average of the old
    weights is left out."""
    assert isinstance(tuned.module, nn.ModuleDict)
    parts = dict(checkpoint.parts)
    for name, network in tuned.module.items():
        old = checkpoint.parts[name]
        state = {n: v.detach().to("cpu", torch_dtype(old.dtype(n))) for n, v in network.state_dict().items()}
        parts[name] = Part(MemoryTensors(state), identity(state), old.shapes)
    changed = dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(checkpoint.config, defaults=defaults),
        parts=parts,
        extras={name: stored for name, stored in checkpoint.extras.items() if not name.startswith(EMA)},
        weights="plain",
        layout=dataclasses.replace(checkpoint.layout, unet="plain", complete=False),
        folder=None,
    )
    write_original(changed, path, overwrite=True)
    return path


def write_adapters(
    tuned: TunedLora,
    bundle: ModelBundle,
    run: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """`run/lora.safetensors` in kohya's layout, `run/lora-diffusers.safetensors` in that of diffusers. metadata:
    further facts that both keep."""
    weights = tuned.weights(dtype)

    def write(name: str, layout: LoraLayout) -> Path:
        return write_lora(run / name, weights, bundle, layout, metadata=metadata, overwrite=True)

    write("lora-diffusers.safetensors", LoraLayout.DIFFUSERS)
    return write("lora.safetensors", LoraLayout.KOHYA)


def write_control(tuned: TunedControl, bundle: ModelBundle, run: Path) -> Path:
    """`run/controlnet.safetensors` in the original layout, `run/controlnet-diffusers` as a folder of diffusers; in the
    precision that the model's U-Net was stored in, float32 where it had several."""
    control, dtype = tuned.control, stored_dtype(bundle)
    state = {name: value.detach().to("cpu", dtype) for name, value in control.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    part = Part(MemoryTensors(state), identity(state), shapes)
    checkpoint = ControlCheckpoint("the trained ControlNet", control.config, control.hint_channels, part)
    write_control_folder(checkpoint, run / "controlnet-diffusers", overwrite=True)
    write_control_file(checkpoint, run / "controlnet.safetensors", overwrite=True)
    return run / "controlnet.safetensors"


def stored_dtype(bundle: ModelBundle) -> torch.dtype:
    """The precision that the model's U-Net was stored in; float32 where it had several."""
    stored = bundle.info.stored_dtype
    return torch_dtype(stored) if stored in FLOATS else torch.float32


def write_word(tuned: TunedWord, token: str, run: Path) -> Path:
    """`run/embedding/NAME.safetensors` for AUTOMATIC1111, where NAME is the word without marks, and
    `run/embedding/learned_embeds.safetensors` for diffusers."""
    folder = run / "embedding"
    folder.mkdir(exist_ok=True)
    word = Embedding(token, tuned.vectors.weight.detach())
    name = re.sub(r"[^\w-]+", "", token) or "word"
    write_embedding(folder / "learned_embeds.safetensors", word, EmbeddingLayout.DIFFUSERS, overwrite=True)
    return write_embedding(folder / f"{name}.safetensors", word, EmbeddingLayout.A1111, overwrite=True)
