"""The original single-file layout: U-Net, autoencoder and text encoder side by side under their prefixes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from langevin.checkpoints import places
from langevin.checkpoints.checkpoint import (
    Checkpoint,
    Stored,
    TextNames,
    family_of,
    meta_networks,
    names_of,
)
from langevin.checkpoints.config import CONFIG_KEY, TOKENIZER_KEY, Defaults, ModelConfig
from langevin.checkpoints.encoders import encoder_record
from langevin.checkpoints.memory import checkpoint_of
from langevin.checkpoints.metadata import folder_record, metadata_for, standard_tokenizer, text_shape
from langevin.checkpoints.places import Places
from langevin.checkpoints.recognise import CONTROL, EMA, TEXT, UNET, VAE, Contents, Kind, recognise
from langevin.checkpoints.safetensors_file import write_safetensors
from langevin.checkpoints.shapes import (
    Shape,
    UnknownArchitectureError,
    autoencoder_shape,
    controlnet_shape,
    unet_shape,
)
from langevin.checkpoints.sidecar import Sidecar
from langevin.checkpoints.stated import Stated, stated_prediction, stated_size
from langevin.checkpoints.tables import stated_scale, stated_schedule
from langevin.checkpoints.tensorfile import TensorFile, TensorInfo, canonical_order, in_words
from langevin.checkpoints.transfer import WORDS, Outgoing, fit
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError
from langevin.model.bundle import FileLayout, ModelBundle, Weights
from langevin.model.tokenizer import Tokenizer
from langevin.networks.autoencoder import AutoencoderConfig
from langevin.networks.clip import ClipTextConfig
from langevin.networks.unet import UNetConfig

_CLIP = TEXT + "transformer."
_OPENCLIP = TEXT + "model."


def open_original(
    file: TensorFile,
    *,
    sidecar: Sidecar | None = None,
    ema: bool | Literal["auto"] = "auto",
    prediction: Prediction | None = None,
    global_step: int | None = None,
) -> Checkpoint:
    """A single file understood, strictly in both directions.

    ema: whether to use the moving average of the U-Net; "auto": where the file has one. CheckpointError for a file that
    is not a Stable Diffusion model, lacks something, or holds something unknown.
    """
    contents = recognise(file.tensors)
    if contents.kind is not Kind.MODEL:
        raise CheckpointError(f"{file.label}: {contents.words}; expected a Stable Diffusion 1.x / 2.x model")
    if contents.unknown:
        raise CheckpointError(
            f"{file.label}: {len(contents.unknown)} of {len(file.tensors)} tensors do not belong in a Stable Diffusion "
            f"model ({in_words(contents.unknown)})"
        )
    names = _text_names(contents)
    config, stated, notices = _config(contents, file, sidecar, prediction, global_step, names)
    if stated.prediction is None and sidecar is None and global_step is not None:
        notices.append(f"the file's global_step of {global_step:,} is not one that tells the prediction type")
    networks = meta_networks(config)
    if untold := [part for part in contents.parts if part not in networks]:
        raise CheckpointError(f"{file.label}: it holds a {WORDS[untold[0]]}, of which its {CONFIG_KEY} knows nothing")
    chosen, where = _unet_places(contents, file, names_of(networks["unet"]), ema)
    if chosen == "ema":
        notices.append("the U-Net's moving average (EMA) is used; ema=False takes the trained weights instead")
    elif contents.ema and ema == "auto":
        notices.append("the file's moving average of the U-Net (EMA) is incomplete and not used")
    laid = {"unet": where, **_other_places(config, networks, names)}
    if chosen == "plain":
        present = {part: _all(contents, part) for part in networks}
    else:  # the trained weights stand beside the average that is used
        present = {part: _all(contents, part) for part in networks if part != "unet"}
    parts = {
        part: fit(WORDS[part], network, file, laid[part], present.get(part, ())) for part, network in networks.items()
    }
    used = {place.name for part in parts.values() for place in part.places.values()}
    order = tuple(file.tensors)
    layout = FileLayout(
        order=None if list(order) == canonical_order(file.tensors) else order,
        metadata=tuple(file.metadata.items()),
        unet=chosen,
        text=names,
        complete=(stated.inside or stated.prediction is None) and sidecar is None,
    )
    return Checkpoint(
        label=file.label,
        format="ldm",
        config=config,
        prediction_from=stated.source,
        parts=parts,
        extras={name: Stored(file, name) for name in file.tensors if name not in used},
        tokenizer=_tokenizer(config, file.metadata, names, file.label),
        encoder=encoder_record(file),
        weights=chosen,
        layout=layout,
        folder=folder_record(file),
        notices=tuple(notices),
    )


def write_original(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    extras: bool = True,
    overwrite: bool = False,
) -> None:
    """Write a single file, atomically. A file that came from one, with nothing changed, comes out byte for byte.

    dtype: safetensors name of the networks' element type (the tables stay as they are); None: as stored. extras:
    whether tensors that no network uses are written too. FileExistsError without `overwrite`.
    """
    outgoing: dict[str, Outgoing] = {}
    tensors: dict[str, TensorInfo] = {}
    for part, laid in original_places(checkpoint, unet=checkpoint.layout.unet if extras else "plain").items():
        source = Outgoing(checkpoint.parts[part], laid, dtype)
        tensors |= source.tensors
        outgoing |= dict.fromkeys(source.tensors, source)
    kept: dict[str, Stored] = {}
    if extras:
        kept = {name: stored for name, stored in checkpoint.extras.items() if name not in tensors}
        tensors |= {name: stored.info for name, stored in kept.items()}
    as_it_was = checkpoint.layout.complete and dtype is None and extras
    metadata = checkpoint.layout.metadata if as_it_was else tuple(metadata_for(checkpoint, tensors).items())
    order = checkpoint.layout.order
    write_safetensors(
        path,
        tensors,
        lambda name: kept[name].read() if name in kept else outgoing[name].read(name),
        metadata=metadata,
        order=order if order is not None and sorted(order) == sorted(tensors) else None,
        overwrite=overwrite,
    )


def write(
    bundle: ModelBundle, path: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
) -> None:
    """Write a model from memory as one file with everything that is needed to run it.

    dtype: safetensors name (F16, BF16, F32); None: as the networks are. See `write_original`.
    """
    write_original(checkpoint_of(bundle), path, dtype=dtype, overwrite=overwrite)


def original_places(checkpoint: Checkpoint, unet: Weights = "plain") -> dict[str, Places]:
    """Where a single file has the tensors of each part."""
    networks = meta_networks(checkpoint.config)
    laid = _other_places(checkpoint.config, networks, checkpoint.layout.text)
    names = names_of(networks["unet"])
    return {"unet": places.averaged(names) if unet == "ema" else places.identity(names, UNET), **laid}


# -- reading ----------------------------------------------------------------------------------------------------------


def _text_names(contents: Contents) -> TextNames:
    names = contents.parts.get("text", {})
    if any(name.startswith("model.") for name in names):
        return "openclip"
    if any(name.startswith("transformer.embeddings.") for name in names):
        return "clip-short"
    return "clip"


def _config(
    contents: Contents,
    file: TensorFile,
    sidecar: Sidecar | None,
    given: Prediction | None,
    global_step: int | None,
    names: TextNames,
) -> tuple[ModelConfig, Stated, list[str]]:
    text = file.metadata.get(CONFIG_KEY)
    whole: ModelConfig | None = None
    if text is not None:
        whole = ModelConfig.from_json(text, file.label)
    elif sidecar is not None and sidecar.config is not None:
        whole = ModelConfig.from_json(json.dumps(sidecar.config), str(sidecar.path))
    if whole is not None:
        source = f"the file's {CONFIG_KEY}" if text is not None else "a configuration beside the file"
        stated = Stated(whole.prediction, source, text is not None)
        if given is not None:
            stated = Stated(given, "given", given is whole.prediction and text is not None)
        return dataclasses.replace(whole, prediction=_prediction(stated)), stated, []
    return _recognised(contents, file, sidecar, given, global_step, names)


def _recognised(
    contents: Contents,
    file: TensorFile,
    sidecar: Sidecar | None,
    given: Prediction | None,
    global_step: int | None,
    names: TextNames,
) -> tuple[ModelConfig, Stated, list[str]]:
    """The configuration read off the shapes and the conventions of the published models."""
    for part, prefix in (("vae", VAE), ("text", TEXT)):
        if part not in contents.parts:
            raise CheckpointError(f"{file.label}: no {WORDS[part]} ({prefix}*); expected a whole model")
    try:
        unet = _with_heads(unet_shape(contents.parts["unet"]), sidecar, file.label)
        autoencoder = autoencoder_shape(contents.parts["vae"])
        text = text_shape(contents.parts["text"], names)
        control, hint_channels = None, 3
        if "control" in contents.parts:
            shape, hint_channels = controlnet_shape(contents.parts["control"])
            control = _with_heads(shape, sidecar, file.label)
        made = (UNetConfig(**unet), AutoencoderConfig(**autoencoder), ClipTextConfig(**text))
        made_control = None if control is None else UNetConfig(**control)
    except UnknownArchitectureError as error:
        raise CheckpointError(f"{file.label}: {error}; expected a Stable Diffusion 1.x / 2.x model") from None
    except ValueError as error:
        raise CheckpointError(f"{file.label}: an impossible architecture: {error}") from None
    beside = made[0].in_channels - made[1].latent_channels
    upscaler = beside == 3 and made[0].num_classes is not None
    stated = stated_prediction(
        given,
        contents,
        file.metadata,
        sidecar,
        global_step,
        context=made[0].context_channels,
        beside_latent=beside,
        label=file.label,
    )
    schedule, notices = stated_schedule(contents, file, sidecar, upscaler=upscaler)
    large = family_of(made[0]) == "sd2" and beside == 0 and stated.prediction == Prediction.V
    width, height = stated_size(file.metadata) or ((768, 768) if large else (512, 512))
    config = ModelConfig(
        # 2.1 at 768 pixels overflows float16 in its attention; 2.0 loses nothing by the wider range.
        unet=dataclasses.replace(made[0], upcast_attention=large),
        autoencoder=made[1],
        text=made[2],
        text_layer=_text_layer(made[2], names, sidecar),
        control=made_control,
        hint_channels=hint_channels,
        schedule=schedule,
        prediction=_prediction(stated),
        learned_variance=made[0].out_channels == 2 * made[1].latent_channels,
        scale_factor=stated_scale(contents, file, sidecar, upscaler=upscaler),
        defaults=Defaults(width=width, height=height),
    )
    return config, stated, notices


def _prediction(stated: Stated) -> Prediction | None:
    return None if stated.prediction is None else Prediction(stated.prediction)


def _with_heads(shape: Shape, sidecar: Sidecar | None, label: str) -> Shape:
    if sidecar is not None and (sidecar.head_channels or sidecar.num_heads):
        # The original code's rule: the channels of a head win.
        by_channels = sidecar.head_channels is not None
        return shape | {
            "num_heads": None if by_channels else sidecar.num_heads,
            "head_channels": sidecar.head_channels,
        }
    if shape["num_heads"] is None and shape["head_channels"] is None:
        raise CheckpointError(
            f"{label}: the number of attention heads cannot be told from the weights (context of "
            f"{shape['context_channels']} channels; 768 and 1024 are known): pass config= (--config) with num_heads or "
            "num_head_channels"
        )
    return shape


def _text_layer(text: ClipTextConfig, names: TextNames, sidecar: Sidecar | None) -> int:
    """Stable Diffusion 2 uses the last but one of OpenCLIP's 24 layers; files from folders hold only 23."""
    if names != "openclip" or text.layers == 23:
        return -1
    return sidecar.text_layer if sidecar is not None and sidecar.text_layer is not None else -2


def _unet_places(
    contents: Contents, file: TensorFile, names: Iterable[str], ema: bool | Literal["auto"]
) -> tuple[Weights, Places]:
    names = list(names)
    averaged = places.averaged(names)
    missing = [place.name for place in averaged.values() if place.name not in file.tensors]
    if ema is True and missing:
        found = (
            f"{len(missing)} of {len(names)} are missing ({in_words(missing)})" if contents.ema else "there are none"
        )
        raise CheckpointError(f"{file.label}: ema=True needs the moving average {EMA}*: {found}; pass ema=False")
    if ema is not False and not missing:
        return "ema", averaged
    return "plain", places.identity(names, UNET)


def _other_places(config: ModelConfig, networks: Mapping[str, Any], names: TextNames) -> dict[str, Places]:
    laid = {}
    if "vae" in networks:
        laid["vae"] = places.identity(names_of(networks["vae"]), VAE)
    if "control" in networks:
        laid["control"] = places.identity(names_of(networks["control"]), CONTROL)
    if config.text is not None:
        ours = names_of(networks["text"])
        match names:
            case "openclip":
                laid["text"] = places.openclip(ours, config.text, _OPENCLIP)
            case "clip-short":
                laid["text"] = places.short_clip(ours, _CLIP)
            case "clip":
                laid["text"] = places.identity(ours, _CLIP)
    return laid


def _all(contents: Contents, part: str) -> list[str]:
    return [contents.prefixes[part] + name for name in contents.parts.get(part, {})]


def _tokenizer(config: ModelConfig, metadata: Mapping[str, str], names: TextNames, label: str) -> Tokenizer | None:
    if config.text is None:
        return None
    if (text := metadata.get(TOKENIZER_KEY)) is not None:
        return Tokenizer.from_json(text)
    tokenizer = standard_tokenizer(names)
    if config.text.vocabulary < len(tokenizer):
        raise CheckpointError(
            f"{label}: a text encoder of {config.text.vocabulary} tokens, and no {TOKENIZER_KEY} in the file; the "
            f"standard vocabulary has {len(tokenizer)}"
        )
    return tokenizer
