"""Writing a diffusers folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from langevin.checkpoints import diffusers_configs as configs
from langevin.checkpoints import places
from langevin.checkpoints.atomic import atomic_folder
from langevin.checkpoints.checkpoint import Checkpoint, FolderFile, Stored, meta_networks, names_of, task_of
from langevin.checkpoints.config import ModelConfig
from langevin.checkpoints.diffusers_folder import FOLDERS, INDEX, LEFTOVER, LEFTOVER_KEY, POSITIONS, STEMS
from langevin.checkpoints.jsonfile import Fields, parse_object
from langevin.checkpoints.original import original_places
from langevin.checkpoints.places import Places
from langevin.checkpoints.safetensors_file import write_safetensors
from langevin.checkpoints.transfer import Outgoing
from langevin.errors import CheckpointError
from langevin.model.tokenizer import Tokenizer

_PIPELINES = {
    "text-to-image": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "upscaling": "StableDiffusionUpscalePipeline",
}


def write_folder(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    extras: bool = True,
    overwrite: bool = False,
) -> None:
    """Write a diffusers folder, atomically. One that came from such a folder comes out byte for byte.

    dtype, extras, overwrite: as for `write_original`. What a single file has and a folder does not (schedule tables, a
    second set of U-Net weights, the text encoder's unused last layer) goes to the file `langevin.safetensors` in it,
    which other programs pass over. CheckpointError where a folder cannot hold the model at all.
    """
    config = folder_config(checkpoint)
    record = checkpoint.folder
    networks = meta_networks(config)
    with atomic_folder(path, overwrite=overwrite) as temporary:
        for part, folder in FOLDERS.items():
            (temporary / folder).mkdir()
            default = FolderFile(name=f"{folder}/{STEMS[part]}.safetensors")
            file = record.weights.get(part, default) if record is not None and dtype is None else default
            if not _is_name(file.name, folder):
                file = dataclasses.replace(file, name=default.name)
            names = list(names_of(networks[part]))
            outgoing = Outgoing(checkpoint.parts[part], _target(part, names, config, file), dtype)
            _write_part(temporary, file, outgoing, _positions(checkpoint) if part == "text" else None)
        texts = _texts(checkpoint, config)
        tokenizer = checkpoint.tokenizer
        assert tokenizer is not None
        for name, text in {**_tokenizer_texts(tokenizer), **texts}.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")
        if extras:
            _write_leftover(checkpoint, networks["text"], temporary)


def folder_config(checkpoint: Checkpoint) -> ModelConfig:
    """The configuration of what a folder holds: the text encoder ends at the layer that is used."""
    config = checkpoint.config
    if config.autoencoder is None or config.text is None:
        raise CheckpointError(f"{checkpoint.label}: a diffusers folder needs an autoencoder and a text encoder")
    if config.prediction is None:
        raise CheckpointError(
            f"{checkpoint.label}: nothing says whether it predicts noise or v, which a folder must state: pass "
            "prediction= (--prediction)"
        )
    layers = config.text.layers + 1 + config.text_layer
    text = dataclasses.replace(config.text, layers=layers, projection=None)
    return dataclasses.replace(config, text=text, text_layer=-1, control=None)


def folder_leftovers(checkpoint: Checkpoint, kept: set[str]) -> dict[str, Stored]:
    """What a single file of this model has and its folder has not, by its name there.

    kept: our names of the text encoder's tensors in the folder.
    """
    extras = dict(checkpoint.extras)
    laid = original_places(checkpoint)
    for part in ("text", "control"):
        if part in checkpoint.parts:
            missing = {n: p for n, p in laid[part].items() if part == "control" or n not in kept}
            outgoing = Outgoing(checkpoint.parts[part], missing)
            extras |= {name: Stored(outgoing, name) for name in outgoing.tensors}
    if checkpoint.folder is not None and _text_file(checkpoint).position_ids:
        extras = {name: stored for name, stored in extras.items() if not name.endswith(POSITIONS)}
    return extras


def _text_file(checkpoint: Checkpoint) -> FolderFile:
    weights = checkpoint.folder.weights if checkpoint.folder is not None else {}
    return weights.get("text", FolderFile(name=""))


def _positions(checkpoint: Checkpoint) -> Stored | None:
    """The text encoder's table of positions, where the folder is to have it."""
    if not _text_file(checkpoint).position_ids:
        return None
    return next((stored for name, stored in checkpoint.extras.items() if name.endswith(POSITIONS)), None)


def _is_name(name: str, folder: str) -> bool:
    """A weight file inside the component's folder: the record may come from anywhere."""
    return re.fullmatch(re.escape(folder) + r"/[\w+-][\w.+-]*\.safetensors", name) is not None


def _target(part: str, names: list[str], config: ModelConfig, file: FolderFile) -> Places:
    match part:
        case "unet":
            return places.diffusers_unet(names, config.unet)
        case "vae":
            assert config.autoencoder is not None
            return places.diffusers_vae(names, config.autoencoder, names_of_2022=file.names_of_2022)
        case _:
            return places.short_clip(names) if file.short_names else places.identity(names)


def _write_part(root: Path, file: FolderFile, outgoing: Outgoing, positions: Stored | None) -> None:
    tensors = dict(outgoing.tensors)
    if positions is not None:
        tensors[POSITIONS if file.short_names else f"text_model.{POSITIONS}"] = positions.info
    order = file.order if file.order is not None and sorted(file.order) == sorted(tensors) else None
    write_safetensors(
        root / file.name,
        tensors,
        lambda n: positions.read() if positions is not None and n.endswith(POSITIONS) else outgoing.read(n),
        metadata=file.metadata,
        order=order,
    )


def _write_leftover(checkpoint: Checkpoint, text: Any, root: Path) -> None:
    extras = folder_leftovers(checkpoint, set(names_of(text)))
    layout = checkpoint.layout
    if not extras and (checkpoint.folder is not None or (not layout.metadata and layout.order is None)):
        return  # nothing would be lost: the single file itself came from a folder, or from memory
    write_safetensors(
        root / LEFTOVER,
        {name: stored.info for name, stored in extras.items()},
        lambda name: extras[name].read(),
        metadata=[(LEFTOVER_KEY, json.dumps(dataclasses.asdict(layout), ensure_ascii=False, separators=(",", ":")))],
    )


def _texts(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, str]:
    """The configuration files: those of the folder that the model came from, where they still hold; else new ones."""
    made = _made_texts(checkpoint, config)
    if checkpoint.folder is None:
        return {name: json.dumps(data, indent=2, sort_keys=True) + "\n" for name, data in made.items()}
    texts = {
        name: text for name, text in checkpoint.folder.texts.items() if name in (*made, *_TOKENIZER_FILES, _LOW_RES)
    }
    scheduler = "scheduler/scheduler_config.json"
    if scheduler in texts:
        _, stated, _ = configs.read_schedule(Fields(parse_object(texts[scheduler], scheduler), scheduler))
        if stated is not config.prediction:
            del texts[scheduler]
    if INDEX in texts and (lost := _lost_components(texts[INDEX])):
        index = parse_object(texts[INDEX], INDEX) | {name: [None, None] for name in lost}
        texts[INDEX] = json.dumps(index, indent=2, sort_keys=True) + "\n"
    needed = {name: data for name, data in made.items() if name not in texts and name != _LOW_RES}
    return {name: json.dumps(data, indent=2, sort_keys=True) + "\n" for name, data in needed.items()} | texts


_TOKENIZER_FILES = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")
_LOW_RES = "low_res_scheduler/scheduler_config.json"


def _lost_components(index: str) -> list[str]:
    """Components that stood in the folder and have no place in a single file: the safety checker, for one."""
    there = {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "low_res_scheduler"}
    data = parse_object(index, INDEX)
    return [n for n, v in data.items() if isinstance(v, list) and v != [None, None] and n not in there]


def _made_texts(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, dict[str, Any]]:
    tokenizer = checkpoint.tokenizer
    assert config.autoencoder is not None and config.text is not None
    assert config.prediction is not None and tokenizer is not None
    task = task_of(config)
    index: dict[str, Any] = {
        "_class_name": _PIPELINES[task],
        "_diffusers_version": "0.38.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    cell = 2 ** (len(config.autoencoder.channel_mult) - 1)
    size = max(config.defaults.width, config.defaults.height)
    made = {
        INDEX: index,
        "scheduler/scheduler_config.json": configs.schedule_json(config.schedule, config.prediction),
        "unet/config.json": configs.unet_json(config.unet, size // cell),
        "vae/config.json": configs.vae_json(config.autoencoder, config.scale_factor, size),
        "text_encoder/config.json": configs.text_json(config.text, bos=tokenizer.bos, pad=tokenizer.pad),
    }
    if task == "upscaling":
        index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": 350}
        noise = configs.schedule_json(config.schedule, config.prediction)
        made[_LOW_RES] = noise | {"_class_name": "DDPMScheduler", "prediction_type": "epsilon"}
    return made


def _tokenizer_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """The files of a CLIP tokenizer's folder."""
    model = json.loads(tokenizer.to_json())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    start, end, pad = (tokenizer.token(i) for i in (tokenizer.bos, tokenizer.eos, tokenizer.pad))
    special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": tokenizer.max_length,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    return {
        "tokenizer/vocab.json": json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")),
        "tokenizer/merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "tokenizer/special_tokens_map.json": json.dumps(special, indent=2, ensure_ascii=False) + "\n",
        "tokenizer/tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }
