"""What a file or folder is, from its headers alone. Needs no torch, and reads no weights (but to hash them)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langevin.checkpoints.adapter_names import split
from langevin.checkpoints.jsonfile import Fields, read_object
from langevin.checkpoints.recognise import Contents, Kind, recognise
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.checkpoints.shapes import (
    Shape,
    UnknownArchitectureError,
    autoencoder_shape,
    clip_text_shape,
    controlnet_shape,
    openclip_text_shape,
    unet_shape,
)
from langevin.checkpoints.sidecar import PREDICTIONS, Sidecar, beside
from langevin.checkpoints.stated import stated_prediction, stated_size
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo
from langevin.checkpoints.weightfiles import open_weights, variants
from langevin.errors import CheckpointError

CONFIG_KEY = "langevin.config"
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
_SHOWN = 200
"""Characters of a metadata value that are shown."""
_LARGEST_VALUE = 1_000_000
_FOLDERS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
}
_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""By the width of the text states."""
_ADAPTER_KEY = "lora_adapter_metadata"
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_TASKS = {1: "depth", 3: "upscaling", 5: "inpainting"}


def describe(path: Path, *, allow_pickle: bool = False, with_hash: bool = False) -> dict[str, Any]:
    """Facts about a weight file or a model folder, ready for JSON.

    with_hash: the SHA-256 of every weight file too, which reads them whole. CheckpointError for what is no weight file.
    """
    if path.is_dir():
        facts, files = _folder(path, allow_pickle)
    else:
        file, step = _open(path, allow_pickle)
        files = [path]
        facts = _single(file, beside(path), step) | {"metadata": _metadata(file.metadata)}
        for name in _HASHES:
            if name in file.metadata:
                facts["stated_hash"] = file.metadata[name][:_SHOWN]
                break
    sizes = {"path": str(path), "bytes": sum(file.stat().st_size for file in files)}
    if with_hash:
        facts["sha256"] = {str(file): _sha256(file) for file in files}
    return sizes | facts


def _open(path: Path, allow_pickle: bool) -> tuple[TensorFile, int | None]:
    if path.suffix.lower() not in _PICKLED:
        return SafetensorsFile(path), None
    from langevin.checkpoints.pickled import PickledFile

    file = PickledFile(path, allow_pickle=allow_pickle)
    return file, file.global_step


# -- single files -----------------------------------------------------------------------------------------------------


def _single(file: TensorFile, sidecar: Sidecar | None, global_step: int | None) -> dict[str, Any]:
    contents = recognise(file.tensors)
    facts: dict[str, Any] = {"kind": str(contents.kind), "what": contents.words}
    match contents.kind:
        case Kind.MODEL:
            facts |= {"format": "original single file", "parts": _parts(contents.parts)}
            facts |= _model(contents, file, sidecar, global_step)
        case Kind.CONTROLNET:
            facts |= {"format": "original single file", "parts": _parts(contents.parts)}
            facts |= _try(lambda: _control(contents.parts["control"]))
        case Kind.VAE:
            facts |= {"format": "original single file", "parts": _parts({"vae": file.tensors})}
            facts |= _try(lambda: _latents(file.tensors))
        case Kind.LORA:
            facts |= _lora(file)
        case Kind.EMBEDDING:
            facts |= _embedding(file)
        case _:
            facts |= {"parts": _parts({"all": file.tensors})}
    if contents.unknown:
        facts["unknown_tensors"] = len(contents.unknown)
    return facts


def _control(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    context = controlnet_shape(tensors)[0]["context_channels"]
    return {"context": context, "for": _FAMILIES.get(context)}


def _latents(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    shape = autoencoder_shape(tensors)
    return {"latents": {"channels": shape["latent_channels"], "factor": 2 ** (len(shape["channel_mult"]) - 1)}}


def _model(contents: Contents, file: TensorFile, sidecar: Sidecar | None, global_step: int | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"ema": contents.ema, "other_tensors": len(contents.extras)}
    architecture = _try(lambda: _architecture(contents))
    facts |= architecture
    if (text := file.metadata.get(CONFIG_KEY)) is not None:
        return facts | _ours(text)
    if "architecture" not in architecture:
        return facts
    unet, vae = architecture["architecture"]["unet"], architecture["architecture"].get("vae")
    other = 0 if vae is None else unet["in_channels"] - vae["latent_channels"]
    stated = stated_prediction(
        None,
        contents,
        file.metadata,
        sidecar,
        global_step,
        context=unet["context_channels"],
        beside_latent=other,
        label=file.label,
    )
    return facts | {
        "family": {768: "sd1", 1024: "sd2"}.get(unet["context_channels"] or 0, "custom"),
        "task": _TASKS.get(other, "text-to-image"),
        "prediction": stated.prediction,
        "prediction_from": stated.source,
        "size": stated_size(file.metadata),
    }


def _architecture(contents: Contents) -> dict[str, Any]:
    shapes: dict[str, Shape] = {"unet": unet_shape(contents.parts["unet"])}
    if "vae" in contents.parts:
        shapes["vae"] = autoencoder_shape(contents.parts["vae"])
    if text := contents.parts.get("text"):
        openclip = any(name.startswith("model.") for name in text)
        outer = "model." if openclip else "transformer."
        tensors = {name.removeprefix(outer): info for name, info in text.items()}
        shapes["text"] = openclip_text_shape(tensors) if openclip else clip_text_shape(tensors)
    return {"architecture": shapes}


def _ours(text: str) -> dict[str, Any]:
    """From a configuration of ours, whose truth the loader checks."""
    try:
        data = json.loads(text)
        size = (data["defaults"]["width"], data["defaults"]["height"])
        context = data["unet"]["context_channels"]
        prediction = data["prediction"]
        of_pixels = {"what": "a diffusion model of pixels"} if data["autoencoder"] is None else {}
        classes = [str(name) for name in data.get("classes", ())]
        task = _our_task(data)
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"prediction": None, "prediction_from": f"{CONFIG_KEY} is damaged"}
    return {
        "family": {768: "sd1", 1024: "sd2"}.get(context, "custom"),
        "task": task,
        "prediction": prediction,
        "prediction_from": f"the file's {CONFIG_KEY}",
        "size": size,
        **of_pixels,
        **({"classes": classes} if classes else {}),
    }


def _our_task(data: dict[str, Any]) -> str:
    """As the loader tells it from a configuration (`checkpoint.task_of`), without torch."""
    unet, vae = data["unet"], data["autoencoder"]
    if unet["context_channels"] is None:
        return "unconditional" if unet["num_classes"] is None else "class-to-image"
    pixels = unet["out_channels"] // (2 if data["learned_variance"] else 1)
    latent = pixels if vae is None else vae["latent_channels"]
    other = unet["in_channels"] - latent
    if other == latent + 1:
        return "inpainting"
    return "upscaling" if other == 3 and unet["num_classes"] is not None else {1: "depth"}.get(other, "text-to-image")


def _lora(file: TensorFile) -> dict[str, Any]:
    layers: dict[str, dict[str, TensorInfo]] = {}
    for name, info in file.tensors.items():
        layer, kind = split(name)
        if layer:
            layers.setdefault(layer, {})[kind] = info
    text = sum(1 for name in layers if name.startswith(("lora_te", "text_encoder", "te")))
    factors = {name: factor for name, found in layers.items() if (factor := _factor(found)) is not None}
    ranks = Counter(factor.shape[0] for factor in factors.values() if factor.shape)
    context = next((i.shape[-1] for name, i in factors.items() if "attn2" in name and "to_k" in name), 0)
    return {
        "parts": _parts({"all": file.tensors}),
        "adapters": dict(Counter(_algorithm(found) for found in layers.values())),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "alpha": _alpha(file.metadata, sum("alpha" in found for found in layers.values())),
        "layers": {"unet": len(layers) - text, "text_encoder": text},
        "for": _FAMILIES.get(context),
    }


def _algorithm(found: Mapping[str, TensorInfo]) -> str:
    """What an adapter is called that has these tensors."""
    names = {"down": "LoRA", "w1_a": "LoHa", "diff": "difference", "diff_b": "difference"}
    name = next((word for kind, word in names.items() if kind in found), "LoKr")
    if "mid" in found:
        name = "LoCon"
    return f"DoRA ({name})" if {"dora", "magnitude"} & set(found) else name


def _factor(found: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """The factor whose rows are the rank, if there is one."""
    return next((found[kind] for kind in ("down", "w1_b", "kron w1_b", "kron w2_b") if kind in found), None)


def _alpha(metadata: Mapping[str, str], own: int) -> str:
    """What the header tells of it: the numbers themselves are among the weights."""
    stated = metadata.get("ss_network_alpha")
    if own:
        return f"each layer's own ({own})" + (f", stated as {stated[:20]}" if stated else "")
    return "in the metadata" if _ADAPTER_KEY in metadata else "none: that of each layer is its rank"


def _embedding(file: TensorFile) -> dict[str, Any]:
    info = file.tensors.get("emb_params") or next(iter(file.tensors.values()))
    width = info.shape[-1] if info.shape else 0
    return {
        "parts": _parts({"all": file.tensors}),
        "vectors": info.shape[0] if len(info.shape) == 2 else 1,
        "for": _FAMILIES.get(width),
    }


def _parts(parts: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, Any]:
    return {
        part: {
            "tensors": len(tensors),
            "parameters": sum(info.elements for info in tensors.values()),
            "dtype": "+".join(sorted({info.dtype for info in tensors.values()})),
        }
        for part, tensors in parts.items()
    }


def _metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Short values as they are, the beginnings of long ones; what is of unsound size is only measured."""
    shown = {}
    for name, value in metadata.items():
        if len(value) > _LARGEST_VALUE:
            shown[name[:_SHOWN]] = f"({len(value):,} characters)"
        else:
            shown[name[:_SHOWN]] = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}... ({len(value):,} characters)"
    return shown


def _try(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make()
    except UnknownArchitectureError as error:
        return {"unknown_architecture": str(error)}


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder(path: Path, allow_pickle: bool) -> tuple[dict[str, Any], Sequence[Path]]:
    if (path / "model_index.json").is_file():
        return _pipeline(path, allow_pickle)
    if (path / "config.json").is_file():
        kind = read_object(path / "config.json").get("_class_name")
        stem = "diffusion_pytorch_model" if kind is not None else "model"
        file = open_weights(path, stem, variants(half=False, non_ema=False), allow_pickle=allow_pickle)
        contents = recognise(file.tensors)
        facts = {"kind": str(contents.kind), "what": contents.words, "format": "diffusers folder of one component"}
        return facts | {"class": kind, "parts": _parts({"all": file.tensors})}, file.paths
    found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
    raise CheckpointError(f"{path}: no model_index.json (found {found}); expected a diffusers folder")


def _pipeline(path: Path, allow_pickle: bool) -> tuple[dict[str, Any], Sequence[Path]]:
    parts: dict[str, Mapping[str, TensorInfo]] = {}
    files: list[Path] = []
    for part, (folder, stem) in _FOLDERS.items():
        file = open_weights(path / folder, stem, variants(half=False, non_ema=False), allow_pickle=allow_pickle)
        parts[part] = file.tensors
        files += file.paths
    scheduler = Fields.of(path / "scheduler" / "scheduler_config.json")
    unet = Fields.of(path / "unet" / "config.json")
    vae = Fields.of(path / "vae" / "config.json")
    context = unet.get("cross_attention_dim", int, 1280)
    other = unet.get("in_channels", int, 4) - vae.get("latent_channels", int, 4)
    leftover = path / "langevin.safetensors"
    facts = {
        "kind": str(Kind.MODEL),
        "what": "a Stable Diffusion model",
        "format": "diffusers folder",
        "class": read_object(path / "model_index.json").get("_class_name"),
        "parts": _parts(parts),
        "family": {768: "sd1", 1024: "sd2"}.get(context, "custom"),
        "task": _TASKS.get(other, "text-to-image"),
        "prediction": PREDICTIONS.get(scheduler.get("prediction_type", str, "epsilon")),
        "prediction_from": "scheduler_config.json",
        "other_tensors": len(SafetensorsFile(leftover).tensors) if leftover.is_file() else 0,
    }
    return facts, [*files, leftover] if leftover.is_file() else files


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
