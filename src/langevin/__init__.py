"""Langevin: diffusion models in Python, on PyTorch.

Nothing heavy is imported here: a name below is looked up in its module when it is first used (PEP 562), so that
`import langevin` and `langevin --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from langevin.errors import CheckpointError, DataError, LangevinError, NotFiniteError, RequestError

if TYPE_CHECKING:
    from langevin import tasks
    from langevin.api import Model, load
    from langevin.tasks.plan import Plan
    from langevin.tasks.request import GenerateRequest, ModelOptions
    from langevin.tasks.runner import Result, run

from langevin.version import __version__

__all__ = [
    "CheckpointError",
    "DataError",
    "GenerateRequest",
    "LangevinError",
    "Model",
    "ModelOptions",
    "NotFiniteError",
    "Plan",
    "RequestError",
    "Result",
    "__version__",
    "load",
    "run",
    "tasks",
]

_WHERE = {
    "GenerateRequest": "langevin.tasks.request",
    "Model": "langevin.api",
    "ModelOptions": "langevin.tasks.request",
    "Plan": "langevin.tasks.plan",
    "Result": "langevin.tasks.runner",
    "load": "langevin.api",
    "run": "langevin.tasks.runner",
}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name == "tasks":
        return import_module("langevin.tasks")
    raise AttributeError(f"module 'langevin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
