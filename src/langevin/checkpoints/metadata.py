"""What stands in the metadata of our single files beside the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from langevin.checkpoints.checkpoint import Checkpoint, FolderFile, FolderRecord, TextNames
from langevin.checkpoints.config import CONFIG_KEY, TOKENIZER_KEY, ModelConfig, strict
from langevin.checkpoints.encoders import ENCODER_KEY, encoder_json
from langevin.checkpoints.recognise import recognise
from langevin.checkpoints.shapes import Shape, clip_text_shape, controlnet_shape, openclip_text_shape
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.errors import CheckpointError
from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import ClipTextConfig
from langevin.networks.unet import UNetConfig

FOLDER_KEY = "langevin.folder"
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
"""Metadata that is true of one file only."""


def standard_tokenizer(names: TextNames) -> Tokenizer:
    """CLIP's vocabulary with the padding of Stable Diffusion 1.x, or of 2.x with OpenCLIP's text encoder."""
    return Tokenizer.clip(pad=0 if names == "openclip" else None)


def text_shape(part: Mapping[str, TensorInfo], names: TextNames) -> Shape:
    """ClipTextConfig's arguments from the tensors behind `cond_stage_model.`."""
    outer = "model." if names == "openclip" else "transformer."
    tensors = {n.removeprefix(outer): i for n, i in part.items()}
    shape = openclip_text_shape(tensors) if names == "openclip" else clip_text_shape(tensors)
    return shape | {"eos_token": min(shape["eos_token"], ClipTextConfig().eos_token)}


def metadata_for(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The source file's own, if it had any, and all that a reader needs to know."""
    config = _completed(checkpoint, tensors)
    kept = {name: value for name, value in checkpoint.layout.metadata if name not in _HASHES}
    metadata = {"format": "pt", **kept, CONFIG_KEY: config.to_json()}
    if checkpoint.tokenizer is not None:
        text = checkpoint.tokenizer.to_json()
        if text != standard_tokenizer(checkpoint.layout.text).to_json():
            metadata[TOKENIZER_KEY] = text
    if checkpoint.encoder is not None:
        metadata[ENCODER_KEY] = encoder_json(checkpoint.encoder)
    if checkpoint.folder is not None:
        record = dataclasses.asdict(checkpoint.folder)
        metadata[FOLDER_KEY] = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return metadata


def _completed(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> ModelConfig:
    """The configuration of the file to be written: what a folder had only kept is part of its networks again."""
    config = checkpoint.config
    parts = recognise(tensors).parts
    if config.text is not None:
        shape = text_shape(parts["text"], checkpoint.layout.text)
        more = shape["layers"] - config.text.layers
        text = dataclasses.replace(config.text, layers=shape["layers"], projection=shape["projection"])
        config = dataclasses.replace(config, text=text, text_layer=config.text_layer - more)
    if config.control is None and "control" in parts:
        heads = {"num_heads": config.unet.num_heads, "head_channels": config.unet.head_channels}
        control, hint_channels = controlnet_shape(parts["control"])
        config = dataclasses.replace(config, control=UNetConfig(**control | heads), hint_channels=hint_channels)
    return config


def folder_record(file: TensorFile) -> FolderRecord | None:
    if (text := file.metadata.get(FOLDER_KEY)) is None:
        return None
    where = f"{file.label}: {FOLDER_KEY}"
    try:
        data = json.loads(text)
        weights = {part: strict(FolderFile, entry, where) for part, entry in data["weights"].items()}
        return FolderRecord(texts={str(k): str(v) for k, v in data["texts"].items()}, weights=weights)
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(f"{where} is damaged; expected what `langevin convert` writes") from None
