"""Facts from a YAML or JSON file beside a checkpoint, or given by the user. Nothing in it is ever run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from langevin.errors import CheckpointError

_MOST_BYTES = 1_000_000
_LAYERS = {"last": -1, "penultimate": -2}
PREDICTIONS = {
    "eps": "epsilon",
    "epsilon": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "x0": "x0",
    "x_start": "x0",
    "sample": "x0",
}
"""Names of the prediction types in YAML files, modelspec metadata and diffusers' configs, and ours."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a configuration file states; None where it is silent."""

    path: Path
    config: dict[str, Any] | None = None
    """A whole `langevin.config`."""
    prediction: str | None = None
    scale_factor: float | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    num_heads: int | None = None
    head_channels: int | None = None
    text_layer: int | None = None
    pooled: bool | None = None
    """Of a ControlNet: whether its residuals are averaged over all places."""

    @property
    def silent(self) -> bool:
        return all(value is None for name, value in vars(self).items() if name != "path")


class SilentError(CheckpointError):
    """A configuration that says nothing about a model."""


def beside(path: Path) -> Sidecar | None:
    """The file of the same stem with .yaml, .yml or .json that says something about the model.

    Other programs keep notes under such names: what says nothing of use is passed over, and so is JSON that cannot be
    read. A YAML that is broken or impossible is an error: it was put there to be believed.
    """
    for suffix in (".yaml", ".yml", ".json"):
        candidate = path.with_suffix(suffix)
        if candidate.is_file() and candidate != path:
            try:
                return read_sidecar(candidate)
            except SilentError:
                continue
            except CheckpointError:
                if suffix != ".json":
                    raise
    return None


def read_sidecar(path: Path) -> Sidecar:
    """An original training YAML, a scheduler_config.json of diffusers, or our own configuration as JSON.

    CheckpointError where it is none of them or states something impossible.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes; a configuration has at most {_MOST_BYTES:,}")
        # The safe loader builds plain values only. JSON is YAML.
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not YAML or JSON: {(str(error) or '?').splitlines()[0][:120]}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise SilentError(f"{path}: no configuration: the top level holds no fields")
    if "format" in data and "unet" in data:
        return Sidecar(path=path, config=data)
    found = _from_diffusers(path, data) if "prediction_type" in data else _from_training(path, data)
    if found.silent:
        raise SilentError(f"{path}: says nothing about the model (no model.params, no prediction_type)")
    return found


def _from_diffusers(path: Path, data: dict[str, Any]) -> Sidecar:
    return Sidecar(path=path, prediction=_prediction(path, data["prediction_type"]))


def _from_training(path: Path, data: dict[str, Any]) -> Sidecar:
    params = _table(data, "model", "params")
    unet = _table(params, "unet_config", "params")
    layer = _table(params, "cond_stage_config", "params").get("layer")
    prediction = params.get("parameterization")
    return Sidecar(
        path=path,
        # The original code's default is noise; only a file that configures a U-Net makes that statement.
        prediction=_prediction(path, prediction) if prediction is not None else "epsilon" if unet else None,
        scale_factor=_number(path, params, "scale_factor"),
        beta_start=_number(path, params, "linear_start"),
        beta_end=_number(path, params, "linear_end"),
        num_heads=_count(path, unet, "num_heads"),
        head_channels=_count(path, unet, "num_head_channels"),
        text_layer=_LAYERS.get(layer) if isinstance(layer, str) else None,
        pooled=pooled if isinstance(pooled := params.get("global_average_pooling"), bool) else None,
    )


def _prediction(path: Path, value: object) -> str:
    if not isinstance(value, str) or value not in PREDICTIONS:
        known = ", ".join(dict.fromkeys(PREDICTIONS))
        raise CheckpointError(f"{path}: prediction type {_show(value)} is not known; known: {known}")
    return PREDICTIONS[value]


def _show(value: object) -> str:
    """A value in a message. YAML's aliases can make a small file's containers endless as text."""
    return repr(value)[:40] if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _table(data: dict[str, Any], *path: str) -> dict[str, Any]:
    value: Any = data
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _number(path: Path, data: dict[str, Any], name: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    # YAML 1.1 reads 1e-4 as text.
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 < number < 1e6:
        raise CheckpointError(f"{path}: {name} = {_show(value)}: expected a positive number")
    return number


def _count(path: Path, data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None or value == -1:  # the original code's word for "not this one"
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {name} = {_show(value)}: expected a whole number above 0")
    return value
