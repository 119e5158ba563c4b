"""What people ask for: a request becomes a plan, and a plan is run.

The names are looked up when they are first used: `langevin.tasks.request` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langevin.tasks.control_request import ControlOptions, ControlRequest, DepthRequest, SemanticRequest
    from langevin.tasks.controlling import control
    from langevin.tasks.editing import edit
    from langevin.tasks.from_picture import image_to_image
    from langevin.tasks.from_text import text_to_image
    from langevin.tasks.image_requests import ImageToImageRequest, InpaintRequest, OutpaintRequest
    from langevin.tasks.inpainting import inpaint
    from langevin.tasks.inversion import Inverted, invert, regenerate
    from langevin.tasks.inversion_request import EditRequest, InvertRequest
    from langevin.tasks.large_requests import LargeRequest, UpscaleRequest
    from langevin.tasks.latent_file import read_latent, write_latent
    from langevin.tasks.mapped import depth_to_image, semantic_to_image
    from langevin.tasks.outpainting import outpaint
    from langevin.tasks.plan import Plan
    from langevin.tasks.request import GenerateRequest, ModelOptions
    from langevin.tasks.runner import Result, Run, run
    from langevin.tasks.two_passes import large
    from langevin.tasks.upscaling import Cascaded, cascade, upscale

__all__ = [
    "Cascaded",
    "ControlOptions",
    "ControlRequest",
    "DepthRequest",
    "EditRequest",
    "GenerateRequest",
    "ImageToImageRequest",
    "InpaintRequest",
    "InvertRequest",
    "Inverted",
    "LargeRequest",
    "ModelOptions",
    "OutpaintRequest",
    "Plan",
    "Result",
    "Run",
    "SemanticRequest",
    "UpscaleRequest",
    "cascade",
    "control",
    "depth_to_image",
    "edit",
    "image_to_image",
    "inpaint",
    "invert",
    "large",
    "outpaint",
    "read_latent",
    "regenerate",
    "run",
    "semantic_to_image",
    "text_to_image",
    "upscale",
    "write_latent",
]

_WHERE = {
    "Cascaded": "langevin.tasks.upscaling",
    "ControlOptions": "langevin.tasks.control_request",
    "ControlRequest": "langevin.tasks.control_request",
    "DepthRequest": "langevin.tasks.control_request",
    "EditRequest": "langevin.tasks.inversion_request",
    "GenerateRequest": "langevin.tasks.request",
    "ImageToImageRequest": "langevin.tasks.image_requests",
    "InvertRequest": "langevin.tasks.inversion_request",
    "Inverted": "langevin.tasks.inversion",
    "LargeRequest": "langevin.tasks.large_requests",
    "InpaintRequest": "langevin.tasks.image_requests",
    "ModelOptions": "langevin.tasks.request",
    "OutpaintRequest": "langevin.tasks.image_requests",
    "Plan": "langevin.tasks.plan",
    "Result": "langevin.tasks.runner",
    "Run": "langevin.tasks.runner",
    "SemanticRequest": "langevin.tasks.control_request",
    "UpscaleRequest": "langevin.tasks.large_requests",
    "cascade": "langevin.tasks.upscaling",
    "control": "langevin.tasks.controlling",
    "depth_to_image": "langevin.tasks.mapped",
    "edit": "langevin.tasks.editing",
    "image_to_image": "langevin.tasks.from_picture",
    "invert": "langevin.tasks.inversion",
    "read_latent": "langevin.tasks.latent_file",
    "regenerate": "langevin.tasks.inversion",
    "large": "langevin.tasks.two_passes",
    "inpaint": "langevin.tasks.inpainting",
    "outpaint": "langevin.tasks.outpainting",
    "run": "langevin.tasks.runner",
    "semantic_to_image": "langevin.tasks.mapped",
    "text_to_image": "langevin.tasks.from_text",
    "upscale": "langevin.tasks.upscaling",
    "write_latent": "langevin.tasks.latent_file",
}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'langevin.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
