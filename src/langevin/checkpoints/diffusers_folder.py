"""The diffusers folder: a sub-folder with configuration and weights for each component."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from langevin.checkpoints import diffusers_configs as configs
from langevin.checkpoints import places
from langevin.checkpoints.checkpoint import (
    Checkpoint,
    FolderFile,
    FolderRecord,
    Stored,
    meta_networks,
    names_of,
    text_names_of,
)
from langevin.checkpoints.config import CONFIG_KEY, Defaults, ModelConfig, strict
from langevin.checkpoints.jsonfile import Fields, parse_object, read_text
from langevin.checkpoints.places import Places
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.checkpoints.tensorfile import TensorFile, canonical_order
from langevin.checkpoints.transfer import WORDS, fit
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError
from langevin.model.bundle import FileLayout
from langevin.model.tokenizer import Tokenizer

INDEX = "model_index.json"
FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text": "model"}
LEFTOVER = "langevin.safetensors"
"""A file of ours in the folder for what the single file held and the folder has no place for."""
LEFTOVER_KEY = "langevin.layout"
"""Its metadata: how the single file was laid out."""
POSITIONS = "embeddings.position_ids"
_SINGLE_POSITIONS = f"cond_stage_model.transformer.text_model.{POSITIONS}"

_COMPONENTS: Mapping[str, frozenset[str]] = {
    "unet": frozenset(["UNet2DConditionModel"]),
    "vae": frozenset(["AutoencoderKL"]),
    "text_encoder": frozenset(["CLIPTextModel", "CLIPTextModelWithProjection"]),
    "tokenizer": frozenset(["CLIPTokenizer", "CLIPTokenizerFast"]),
    "scheduler": configs.SCHEDULERS,
}
_NOT_USED = {
    "safety_checker": "the safety checker",
    "feature_extractor": None,
    "image_processor": None,
    "image_encoder": "the image encoder",
    "depth_estimator": "the depth estimator",
    "low_res_scheduler": None,
    "controlnet": "the ControlNet",
}
"""Components that are passed over, and how a notice calls them."""

_RECORDED = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")


def is_folder_model(path: Path) -> bool:
    return (path / INDEX).is_file()


def open_folder(
    path: Path,
    *,
    ema: bool | Literal["auto"] = "auto",
    prediction: Prediction | None = None,
    allow_pickle: bool = False,
    half: bool = False,
) -> Checkpoint:
    """A diffusers folder understood, strictly in both directions.

    ema: False takes the variant "non_ema" of the U-Net if there is one; True is refused, since these folders do not say
    which weights they hold. half: prefer the fp16 variants. CheckpointError as for `open_original`.
    """
    if not is_folder_model(path):
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise CheckpointError(f"{path}: no {INDEX} (found {found}); expected a diffusers folder")
    if ema is True:
        raise CheckpointError(f"{path}: ema=True: a diffusers folder does not say whether its weights are an average")
    notices = _check_index(path)
    unet, sample_size = configs.read_unet(Fields.of(path / "unet" / "config.json"))
    vae, scale = configs.read_vae(Fields.of(path / "vae" / "config.json"))
    text = configs.read_text(Fields.of(path / "text_encoder" / "config.json"))
    scheduler = Fields.of(path / "scheduler" / "scheduler_config.json")
    schedule, stated, ignored = configs.read_schedule(scheduler)
    leftover = SafetensorsFile(path / LEFTOVER) if (path / LEFTOVER).is_file() else None
    config = ModelConfig(
        unet=unet,
        autoencoder=vae,
        text=text,
        schedule=schedule,
        prediction=prediction or stated,
        learned_variance=unet.out_channels == 2 * vae.latent_channels,
        scale_factor=scale,
    )
    layout = _layout(leftover, FileLayout(text=text_names_of(unet)), complete=config.prediction is stated)
    config = dataclasses.replace(config, defaults=_defaults(config, layout, sample_size))
    networks = meta_networks(config)
    parts, weights = {}, {}
    extras = {name: Stored(leftover, name) for name in leftover.tensors} if leftover else {}
    for part, network in networks.items():
        order = variants(half=half, non_ema=ema is False and part == "unet")
        file = open_weights(path / FOLDERS[part], STEMS[part], order, allow_pickle=allow_pickle)
        laid, of_2022 = _places(part, names_of(network), config, file)
        present = [name for name in file.tensors if not name.endswith(POSITIONS)]
        parts[part] = fit(WORDS[part], network, file, laid, present)
        weights[part] = _record(path, file, of_2022)
        for name in set(file.tensors) - set(present):
            extras.setdefault(_SINGLE_POSITIONS, Stored(file, name))
    return Checkpoint(
        label=str(path),
        format="diffusers",
        config=config,
        prediction_from="scheduler_config.json" if prediction is None else "given",
        parts=parts,
        extras=extras,
        tokenizer=Tokenizer.from_folder(path / "tokenizer"),
        layout=layout,
        folder=FolderRecord(texts=_texts(path), weights=weights),
        notices=(*notices, *ignored),
    )


def text_places(names: Iterable[str], file: TensorFile) -> Places:
    """Hugging Face's names, with "text_model." or without."""
    long = any(name.startswith("text_model.") for name in file.tensors)
    return places.identity(names) if long else places.short_clip(names)


def _places(part: str, names: Iterable[str], config: ModelConfig, file: TensorFile) -> tuple[Places, bool]:
    match part:
        case "unet":
            return places.diffusers_unet(names, config.unet), False
        case "vae":
            assert config.autoencoder is not None
            of_2022 = any(".attentions.0.query." in name for name in file.tensors)
            return places.diffusers_vae(names, config.autoencoder, names_of_2022=of_2022), of_2022
        case _:
            return text_places(names, file), False


def _check_index(path: Path) -> list[str]:
    """Notices of what is passed over. CheckpointError for a pipeline or a component that is not known."""
    index = Fields.of(path / INDEX)
    index.require_class(*configs.PIPELINES)
    notices = []
    for name in index.rest():
        value = index.take(name, None)
        if name in _COMPONENTS:
            if not isinstance(value, list) or len(value) != 2 or value[1] not in _COMPONENTS[name]:
                known = ", ".join(sorted(_COMPONENTS[name]))
                raise index.error(name, f"{json.dumps(value)[:80]}; expected {known}")
        elif name in _NOT_USED:
            if value != [None, None] and _NOT_USED[name] is not None and (path / name).is_dir():
                notices.append(f"{_NOT_USED[name]} in the folder {name} is not used")
        elif isinstance(value, list | dict) and value != [None, None]:
            raise index.error(name, f"an unknown component {json.dumps(value)[:80]}")
    return notices


def _layout(leftover: SafetensorsFile | None, default: FileLayout, *, complete: bool) -> FileLayout:
    if leftover is None:
        return default
    where = f"{leftover.label}: {LEFTOVER_KEY}"
    text = leftover.metadata.get(LEFTOVER_KEY)
    if text is None:
        raise CheckpointError(f"{where} is missing; expected what `langevin convert` writes")
    layout = strict(FileLayout, parse_object(text, where), where)
    return dataclasses.replace(layout, complete=layout.complete and complete)


def _defaults(config: ModelConfig, layout: FileLayout, sample_size: int | None) -> Defaults:
    if (text := dict(layout.metadata).get(CONFIG_KEY)) is not None:
        return ModelConfig.from_json(text, LEFTOVER).defaults
    levels = len(config.autoencoder.channel_mult) if config.autoencoder else 1
    size = 512 if sample_size is None else sample_size * 2 ** (levels - 1)
    return Defaults(width=size, height=size)


def _record(path: Path, file: TensorFile, of_2022: bool) -> FolderFile:
    order = tuple(file.tensors)
    name = file.paths[0].relative_to(path).as_posix()
    single = len(file.paths) == 1 and name.endswith(".safetensors")
    return FolderFile(
        name=name if single else file.paths[0].parent.name + "/",
        metadata=tuple(file.metadata.items()),
        order=None if list(order) == canonical_order(file.tensors) else order,
        names_of_2022=of_2022,
        short_names=any(n.startswith("embeddings.") for n in order),
        position_ids=any(n.endswith(POSITIONS) for n in order),
    )


def _texts(path: Path) -> dict[str, str]:
    """The configuration files, verbatim."""
    names = [INDEX, "scheduler/scheduler_config.json", *(f"{folder}/config.json" for folder in FOLDERS.values())]
    names += [name for name in (*_RECORDED, "low_res_scheduler/scheduler_config.json") if (path / name).is_file()]
    return {name: read_text(path / name) for name in names}
