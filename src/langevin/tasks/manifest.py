"""The manifest: everything that a picture was made from, as JSON, and the same for other programs' readers."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import torch
from PIL import Image

from langevin.images.parameters import parameters_text
from langevin.images.png import pixels_sha256
from langevin.model.bundle import Addition, ModelBundle, SourceFile
from langevin.version import __version__

if TYPE_CHECKING:
    from langevin.tasks.plan import Plan

FORMAT = 1


def manifest(plan: Plan, picture: Image.Image, index: int, notices: Sequence[str]) -> dict[str, Any]:
    """What made picture `index` of a plan's run, ready for JSON.

    In exact mode `request` asks for this picture alone, which gives the same pixels; in fast mode, where the batch
    matters, it is the whole request and `picture.index` says which of its pictures this is.
    """
    request = plan.request
    seed = request.image_seeds()[index]
    if request.mode == "exact":
        request = request.changed(seed=seed, seeds=None, count=1)
    return {
        "format": FORMAT,
        "program": f"langevin {__version__}",
        **plan.record,
        "request": request.model_dump(mode="json"),
        "picture": {
            "index": index,
            "seed": seed,
            "width": picture.width,
            "height": picture.height,
            "pixels_sha256": pixels_sha256(picture),
            **({"measured": dict(plan.measure(picture))} if plan.measure else {}),
        },
        "precision": plan.precision,
        "device": str(plan.x.device),
        "network_calls": plan.calls,
        "model": dict(plan.source()) if plan.source else {},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "notices": list(notices),
    }


def describe(bundle: ModelBundle) -> dict[str, Any]:
    """A model, for a manifest: what it is and the SHA-256 of every file its weights came from. Local folders are not
    named, since pictures are passed on."""
    info = bundle.info
    source = info.source if info.source.startswith(("hub:", "package:")) else Path(info.source).name
    return {
        "name": info.name,
        "source": source,
        "format": info.format,
        "family": info.family,
        "prediction": str(info.prediction),
        "weights": info.weights,
        "revision": info.revision,
        "files": [_file(file) for file in info.files],
        "additions": [{"kind": a.kind, **_particular(a), **_file(a.file)} for a in info.additions],
    }


def _particular(addition: Addition) -> dict[str, Any]:
    match addition.kind:
        case "lora":
            return {"strength": addition.strength}
        case "embedding":
            return {"word": addition.word}
        case "vae":
            return {}
        case "controlnet" | "t2i-adapter" | "image-encoder" | "ip-adapter":
            # How strongly it acts is said with its picture.
            return {} if addition.folder is None else {"folder": addition.folder}
        case _:
            assert_never(addition.kind)


def _file(file: SourceFile) -> dict[str, Any]:
    return {"name": file.path.name, "bytes": file.size, "sha256": file.sha256}


_SAMPLER_NAMES = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "lms": "LMS",
    "plms": "PLMS",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "restart": "Restart",
}
"""AUTOMATIC1111's names of our samplers."""

_GRID_NAMES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "beta": "Beta",
    "align_your_steps": "Align Your Steps",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM",
}
"""Its names of our grids; those that it has no name for are left out of the text."""


def parameters(manifest: Mapping[str, Any]) -> str:
    """The `parameters` text of a manifest: what AUTOMATIC1111's web UI and its followers read."""
    request, picture, model = manifest["request"], manifest["picture"], manifest["model"]
    files = model.get("files") or [{}]
    steps = request["steps"] if request["steps"] is not None else len(manifest["sigmas"]) - 1
    clip_skip = request["clip_skip"] + 1
    loras = [addition for addition in model.get("additions", []) if addition["kind"] == "lora"]
    tags = [f"<lora:{Path(lora['name']).stem}:{lora['strength']:g}>" for lora in loras]
    return parameters_text(
        " ".join([request["prompt"] or "", *tags]).strip() if tags else request["prompt"] or "",
        request["negative"],
        {
            "Steps": steps,
            "Sampler": _SAMPLER_NAMES.get(request["sampler"], request["sampler"]),
            "Schedule type": _GRID_NAMES.get(request["schedule"]),
            "CFG scale": f"{request['guidance']:g}",
            "Seed": picture["seed"],
            "Size": f"{picture['width']}x{picture['height']}",
            "Model hash": files[0].get("sha256", "")[:10] or None if len(files) == 1 else None,
            "Model": model.get("name"),
            "Clip skip": clip_skip if clip_skip > 1 else None,
            "RNG": "CPU",
            "Version": manifest["program"],
        },
    )
