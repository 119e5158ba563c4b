"""CLIP with both towers: from a Hugging Face folder, and as one safetensors file of our own.

The file's tensors have the Hugging Face names; architecture, tokenizer and the normalisation of pictures stand in its
metadata.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from langevin.checkpoints.config import TOKENIZER_KEY, strict
from langevin.checkpoints.diffusers_configs import read_text
from langevin.checkpoints.jsonfile import Fields, read_object
from langevin.checkpoints.places import identity
from langevin.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from langevin.checkpoints.tensorfile import MemoryTensors, TensorFile
from langevin.checkpoints.transfer import fit, load_into
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.errors import CheckpointError
from langevin.model.tokenizer import Tokenizer
from langevin.networks.clip import Clip, ClipImage, ClipImageConfig, ClipText, ClipTextConfig

CLIP_KEY = "langevin.clip"
FORMAT = 1

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels from 0 to 1 that OpenAI's and OpenCLIP's towers were trained on."""

_POSITIONS = (".position_ids",)
"""Tables of 0, 1, 2 ... that older files hold beside the weights."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Everything about a CLIP but its weights and tokenizer."""

    text: ClipTextConfig
    image: ClipImageConfig
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of each channel from 0 to 1, as the image tower was trained. The defaults leave [-1, 1] as it is."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipModel:
    """Both towers, ready for use, with what brings texts and pictures to them."""

    text: ClipText
    image: ClipImage
    tokenizer: Tokenizer
    config: ClipConfig
    name: str
    files: tuple[Path, ...]
    """What the weights were read from."""

    @cached_property
    def sha256(self) -> str:
        """Of the weight file; of several, of their hashes one after the other."""
        hashes = []
        for path in self.files:
            with open(path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def write_clip(clip: Clip, config: ClipConfig, tokenizer: Tokenizer, path: Path) -> None:
    """Write both towers in float16 as one file, atomically, replacing what was there."""
    values = {name: value.detach().to(torch.float16).contiguous() for name, value in clip.state_dict().items()}
    tensors = MemoryTensors(values)
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(config)}, separators=(",", ":"), allow_nan=False)
    metadata = [("format", "pt"), (CLIP_KEY, text), (TOKENIZER_KEY, tokenizer.to_json())]
    write_safetensors(path, tensors.tensors, tensors.read, metadata=metadata, overwrite=True)


def load_clip(path: Path, device: torch.device | str = "cpu", *, allow_pickle: bool = False) -> ClipModel:
    """Load a CLIP in float32, strictly: a file that `write_clip` wrote, or a Hugging Face folder with config.json,
    weights, tokenizer and, if the pictures are not normalised as OpenAI's, preprocessor_config.json.

    allow_pickle: read a folder's pytorch_model.bin. Raises CheckpointError, in one line, where something is missing,
    damaged or of another architecture.
    """
    if path.is_dir():
        config = _folder_config(path)
        file = open_weights(path, "model", variants(half=False, non_ema=False), allow_pickle=allow_pickle)
        tokenizer = Tokenizer.from_folder(path)
    else:
        file = SafetensorsFile(path)
        config, tokenizer = _file_config(file.metadata, str(path))
    return _load(config, file, tokenizer, path, device)


def _load(
    config: ClipConfig, file: TensorFile, tokenizer: Tokenizer, path: Path, device: torch.device | str
) -> ClipModel:
    if tokenizer.largest_id >= config.text.vocabulary or tokenizer.max_length > config.text.positions:
        raise CheckpointError(
            f"{path}: the tokenizer has ids up to {tokenizer.largest_id} and makes {tokenizer.max_length} tokens, the "
            f"text tower has {config.text.vocabulary} embeddings and {config.text.positions} positions"
        )
    with torch.device("meta"):
        text, image = ClipText(config.text), ClipImage(config.image)
        try:
            clip = Clip(text, image)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None
    present = [name for name in file.tensors if not name.endswith(_POSITIONS)]
    # The two towers share nothing: each is given its own part, so that both hold the loaded tensors.
    part = fit("CLIP", clip, file, identity(clip.state_dict()), present)
    for tower in (text, image):
        names = tower.state_dict()
        places = {name: part.places[name] for name in names}
        load_into(tower, dataclasses.replace(part, places=places), torch.float32, device)
    name = path.name if path.is_dir() or path.stem != "clip" else f"{path.absolute().parent.name}/{path.stem}"
    return ClipModel(
        text=text, image=image, tokenizer=tokenizer, config=config, name=name, files=tuple(map(Path, file.paths))
    )


def _file_config(metadata: Mapping[str, str], label: str) -> tuple[ClipConfig, Tokenizer]:
    if CLIP_KEY not in metadata or TOKENIZER_KEY not in metadata:
        raise CheckpointError(
            f"{label}: no CLIP with both towers: its metadata has no {CLIP_KEY}; give the clip.safetensors of a "
            "training run, or a Hugging Face folder"
        )
    try:
        data: Any = json.loads(metadata[CLIP_KEY])
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CheckpointError(f"{label}: {CLIP_KEY} is not of format {FORMAT}; a newer langevin may read it")
    return strict(ClipConfig, data, f"{label}: {CLIP_KEY}"), Tokenizer.from_json(metadata[TOKENIZER_KEY])


def _folder_config(folder: Path) -> ClipConfig:
    fields = Fields.of(folder / "config.json")
    kind = fields.get("model_type", str, "")
    if kind != "clip":
        raise fields.error("model_type", f"{kind!r}; only 'clip', with both towers, is known")
    projection = fields.get("projection_dim", int, 512)
    towers = {}
    for name in ("text_config", "vision_config"):
        towers[name] = Fields(fields.get(name, dict, {}), f"{folder / 'config.json'}: {name}")
    text = dataclasses.replace(read_text(towers["text_config"]), projection=projection)
    mean, deviation = read_normalisation(folder / "preprocessor_config.json")
    return ClipConfig(
        text=text, image=read_image_tower(towers["vision_config"], projection), mean=mean, deviation=deviation
    )


def read_image_tower(fields: Fields, projection: int | None) -> ClipImageConfig:
    """The image tower of a Hugging Face configuration: its own, or the part of a CLIP's that is about it."""
    kind = fields.get("model_type", str, "clip_vision_model")
    if kind != "clip_vision_model":
        raise fields.error("model_type", f"{kind!r}; only 'clip_vision_model' is known")
    if fields.get("layer_norm_eps", (int, float), 1e-5) != 1e-5:
        raise fields.error("layer_norm_eps", "only 1e-5 is known")
    activation = fields.get("hidden_act", str, "quick_gelu")
    return fields.made(
        ClipImageConfig,
        image_size=fields.get("image_size", int, 224),
        patch_size=fields.get("patch_size", int, 32),
        in_channels=fields.get("num_channels", int, 3),
        width=fields.get("hidden_size", int, 768),
        layers=fields.get("num_hidden_layers", int, 12),
        heads=fields.get("num_attention_heads", int, 12),
        mlp_width=fields.get("intermediate_size", int, 3072),
        activation=fields.choose("hidden_act", activation, {"quick_gelu": "quick_gelu", "gelu": "gelu"}),
        projection=projection,
    )


Channels = tuple[float, float, float]


def read_normalisation(path: Path) -> tuple[Channels, Channels]:
    """Mean and deviation from a preprocessor_config.json; OpenAI's where there is none."""
    if not path.is_file():
        return OPENAI_MEAN, OPENAI_DEVIATION
    data = read_object(path)
    return _three(data, "image_mean", OPENAI_MEAN, path), _three(data, "image_std", OPENAI_DEVIATION, path)


def _three(data: dict[str, Any], name: str, default: Channels, path: Path) -> Channels:
    value = data.get(name, default)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_share(v) for v in value):
        raise CheckpointError(f"{path}: {name} = {str(value)[:60]}: expected three numbers above 0 and at most 1")
    return float(value[0]), float(value[1]), float(value[2])


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
