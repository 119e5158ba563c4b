"""From a name, a path or a Hub id to a model that runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from langevin.checkpoints import hub, model_folders
from langevin.checkpoints.checkpoint import Checkpoint, family_of, meta_networks, task_of
from langevin.checkpoints.controlnets import ControlCheckpoint, fetch_control, open_control_file, open_control_folder
from langevin.checkpoints.diffusers_folder import open_folder
from langevin.checkpoints.encoders import encoder_of
from langevin.checkpoints.original import open_original
from langevin.checkpoints.pickled import SUFFIXES as PICKLED
from langevin.checkpoints.pickled import PickledFile
from langevin.checkpoints.probe import probe_prediction
from langevin.checkpoints.safetensors_file import SafetensorsFile
from langevin.checkpoints.sidecar import PREDICTIONS, beside, read_sidecar
from langevin.checkpoints.tensorfile import TensorFile
from langevin.checkpoints.transfer import load_into
from langevin.diffusion.prediction import Prediction
from langevin.errors import CheckpointError, RequestError
from langevin.model.autoencoder import Autoencoder
from langevin.model.bundle import CheckpointInfo, ModelBundle
from langevin.model.diffusion_model import DiffusionModel
from langevin.model.text import PromptEncoder, TextEncoder
from langevin.networks.autoencoder import AutoencoderKL
from langevin.networks.clip import ClipText
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNetConfig

PACKAGED = "emoji.safetensors"
"""The model that ships inside the package."""

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float64": torch.float64,
}  # fmt: skip


class Source(NamedTuple):
    """Where a model's files are on this machine."""

    path: Path
    name: str
    """Short, for people."""
    source: str
    """A path, or `hub:owner/name`."""
    revision: str | None
    """The commit of a model from the Hub."""


def load_bundle(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    prediction: str | Prediction | None = None,
    config: str | os.PathLike[str] | None = None,
    ema: bool | Literal["auto"] = "auto",
    allow_pickle: bool = False,
    revision: str | None = None,
) -> ModelBundle:
    """Load a whole model, memory-mapped and strictly.

    source: a single file, a diffusers folder, a name in a folder of $LANGEVIN_MODELS, or a Hub id ("owner/name", or
    "owner/name/file.safetensors"); None is the model inside the package. dtype: of the networks. prediction: what the
    U-Net predicts, where neither the file nor a configuration beside it says. config: a YAML or JSON file that says
    what the weights do not. ema: whether to use the U-Net's moving average; "auto": where the file has one.
    allow_pickle: read .ckpt, .pt, .pth and .bin files too. revision: branch, tag or commit on the Hub.

    Raises CheckpointError, in one line, where something is missing, damaged, foreign or ambiguous.
    """
    wanted = as_dtype(dtype)
    found = locate(source, revision=revision, ema=ema, half=wanted.itemsize == 2, allow_pickle=allow_pickle)
    checkpoint = open_checkpoint(
        found.path, prediction=prediction, config=config, ema=ema, allow_pickle=allow_pickle, half=wanted.itemsize == 2
    )
    return build(checkpoint, found, wanted, device)


def open_checkpoint(
    path: Path,
    *,
    prediction: str | Prediction | None = None,
    config: str | os.PathLike[str] | None = None,
    ema: bool | Literal["auto"] = "auto",
    allow_pickle: bool = False,
    half: bool = False,
) -> Checkpoint:
    """Understand a single file or a diffusers folder; the options are those of `load_bundle`.

    half: prefer a folder's 16-bit variants.
    """
    given = as_prediction(prediction)
    if path.is_dir():
        if config is not None:
            raise CheckpointError(f"{path}: a folder has its own configuration; config= is for single files")
        return open_folder(path, ema=ema, prediction=given, allow_pickle=allow_pickle, half=half)
    file = open_tensors(path, allow_pickle=allow_pickle)
    sidecar = read_sidecar(Path(config)) if config is not None else beside(path)
    step = file.global_step if isinstance(file, PickledFile) else None
    return open_original(file, sidecar=sidecar, ema=ema, prediction=given, global_step=step)


def open_tensors(path: Path, *, allow_pickle: bool = False) -> TensorFile:
    """A weight file of either format, told by its suffix."""
    if path.suffix.lower() in PICKLED:
        return PickledFile(path, allow_pickle=allow_pickle)
    return SafetensorsFile(path)


def build(checkpoint: Checkpoint, found: Source, dtype: torch.dtype, device: str | torch.device = "cpu") -> ModelBundle:
    """The networks with their weights, and what belongs to them."""
    config = checkpoint.config
    networks: Mapping[str, nn.Module] = {
        part: load_into(network, checkpoint.parts[part], dtype, device)
        for part, network in meta_networks(config).items()
    }
    text: PromptEncoder | None = None
    if checkpoint.encoder is not None:
        text = encoder_of(checkpoint.encoder, [file.path for file in checkpoint.files], dtype, device)
    elif config.text is not None:
        network = networks["text"]
        assert isinstance(network, ClipText) and checkpoint.tokenizer is not None
        text = TextEncoder(network, checkpoint.tokenizer, config.text_layer)
    autoencoder = None
    if config.autoencoder is not None:
        network = networks["vae"]
        assert isinstance(network, AutoencoderKL)
        autoencoder = Autoencoder(network, config.scale_factor)
    control = networks.get("control")
    assert control is None or isinstance(control, ControlNet)
    schedule = config.schedule.make()
    prediction, reason = config.prediction, checkpoint.prediction_from
    if prediction is None:
        prediction = probe_prediction(networks["unet"], schedule, text, label=checkpoint.label)
        reason = "a probe: the network's answer to pure noise"
        checkpoint = with_prediction(checkpoint, prediction)
    info = CheckpointInfo(
        name=found.name,
        source=found.source,
        format=checkpoint.format,
        family=family_of(config.unet),
        task=task_of(config),
        prediction=prediction,
        prediction_from=reason,
        weights=checkpoint.weights,
        stored_dtype=checkpoint.stored_dtype,
        files=checkpoint.files,
        revision=found.revision,
        default_size=(config.defaults.width, config.defaults.height),
        default_steps=config.defaults.steps,
        default_guidance=config.defaults.guidance,
        default_sampler=config.defaults.sampler,
        notices=checkpoint.notices,
        layout=checkpoint.layout,
    )
    extras: dict[str, Tensor] = {name: stored.read() for name, stored in checkpoint.extras.items()}
    model = DiffusionModel(networks["unet"], schedule, prediction, config.sigma_data, config.learned_variance)
    return ModelBundle(
        diffusion=model,
        autoencoder=autoencoder,
        text=text,
        controlnet=control,
        classes=config.classes,
        info=info,
        extras=extras,
    )


def locate(
    source: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    ema: bool | Literal["auto"] = "auto",
    half: bool = False,
    allow_pickle: bool = False,
) -> Source:
    """The files of what `load_bundle` is asked for, downloaded if need be. CheckpointError where there are none."""
    if source is None:
        path = Path(str(files("langevin") / "data" / PACKAGED))
        if not path.is_file():
            raise CheckpointError(f"{path}: the packaged model is not installed; name a model (--model)")
        return Source(path, path.stem, f"package:{PACKAGED}", None)
    text = os.fspath(source)
    path = Path(text).expanduser()
    if model_folders.exists(path):
        if revision is not None:
            raise CheckpointError(f"revision={revision}: {path} is on this machine; revisions belong to Hub ids")
        return Source(path, path.name if path.is_dir() else path.stem, str(path), None)
    if "/" not in text and (named := model_folders.find("model", text)):
        return Source(named, named.name if named.is_dir() else named.stem, str(named), None)
    repository = hub.parse(text)
    if repository is None:
        raise CheckpointError(
            f"{text[:200]!r}: no such file or folder, {model_folders.missing('model', text)}, and not a Hub id "
            "(owner/name)"
        )
    fetched = hub.fetch(repository, revision=revision, non_ema=ema is False, half=half, allow_pickle=allow_pickle)
    name = repository.file.rpartition("/")[2].rpartition(".")[0] if repository.file else repository.name
    return Source(fetched.path, name, f"hub:{text.removeprefix('hub:')}", fetched.commit)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """RequestError for a type that networks cannot run in."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise RequestError(f"dtype {dtype}: expected one of {', '.join(DTYPES)}")


def as_prediction(prediction: str | Prediction | None) -> Prediction | None:
    """Takes the names of other programs too. RequestError for an unknown one."""
    if prediction is None or isinstance(prediction, Prediction):
        return prediction
    name = PREDICTIONS.get(prediction, prediction)
    if name not in list(Prediction):
        raise RequestError(f"prediction {prediction!r}: expected one of {', '.join(Prediction)}")
    return Prediction(name)


def with_prediction(checkpoint: Checkpoint, prediction: Prediction) -> Checkpoint:
    """The same checkpoint, with the prediction type known from elsewhere."""
    return dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(checkpoint.config, prediction=prediction),
        layout=dataclasses.replace(checkpoint.layout, complete=False),
    )


def load_controlnet(
    source: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    allow_pickle: bool = False,
    revision: str | None = None,
) -> ControlNet:
    """Load a ControlNet: an original file, alone or with a whole model around it, a diffusers folder or a Hub id.

    The options are those of `load_bundle`. CheckpointError where the file is something else, damaged or incomplete.
    """
    wanted = as_dtype(dtype)
    half = wanted.itemsize == 2
    path = fetch_control(os.fspath(source), revision=revision, half=half, allow_pickle=allow_pickle)
    control = open_control(path, allow_pickle=allow_pickle, half=half)
    network = load_into(control.network(), control.part, wanted, device)
    assert isinstance(network, ControlNet)
    return network


def open_control(
    path: Path, *, steered: UNetConfig | None = None, allow_pickle: bool = False, half: bool = False
) -> ControlCheckpoint:
    """Understand a ControlNet's file or folder. steered: as in `open_control_file`."""
    if path.is_dir():
        return open_control_folder(path, allow_pickle=allow_pickle, half=half)
    return open_control_file(open_tensors(path, allow_pickle=allow_pickle), steered=steered)
