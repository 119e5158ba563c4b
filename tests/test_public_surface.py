"""The public surface, frozen: names, options of requests and of the command line.

A change here is a decision that the diff shows. To take the present surface as the new one:
`python tests/test_public_surface.py > tests/golden/public_surface.json`.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import typer.main

import langevin
from langevin import api, tasks
from langevin.cli.main import build
from langevin.tasks.request import GenerateRequest, ModelOptions

GOLDEN = Path(__file__).parent / "golden" / "public_surface.json"


def surface() -> dict[str, Any]:
    """Everything that users may rely on, as JSON."""
    group = typer.main.get_command(build())
    commands = getattr(group, "commands")  # noqa: B009  # typer's own class, which has no stable name
    return {
        "langevin": sorted(langevin.__all__),
        "langevin.tasks": sorted(tasks.__all__),
        "Model": sorted(name for name in vars(api.Model) if not name.startswith("_")),
        "load": str(inspect.signature(api.load)),
        "Model.generate": str(inspect.signature(api.Model.generate)),
        "Result": sorted(name for name in dir(tasks.Result) if not name.startswith("_"))
        + sorted(tasks.Result.__dataclass_fields__),
        "Run": sorted(name for name in vars(tasks.Run) if not name.startswith("_")),
        "Plan": sorted(tasks.Plan.__dataclass_fields__),
        "GenerateRequest": _fields(GenerateRequest),
        "ModelOptions": _fields(ModelOptions),
        "commands": {
            name: sorted("/".join(p.opts) if p.param_type_name == "option" else p.name.upper() for p in command.params)
            for name, command in sorted(commands.items())
        },
    }


def _fields(options: Any) -> dict[str, Any]:
    schema = options.model_json_schema()
    return {
        name: {"default": "required" if name in schema.get("required", ()) else field.get("default"),
               **{k: v for k, v in field.items() if k in ("type", "anyOf", "enum", "minimum", "maximum", "maxLength")}}
        for name, field in schema["properties"].items()
    }  # fmt: skip


def test_the_public_surface_is_the_frozen_one() -> None:
    frozen = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = json.loads(json.dumps(surface()))
    assert found.keys() == frozen.keys()
    for part in frozen:
        assert found[part] == frozen[part], f"{part} has changed: if that is meant, see this file's docstring"


def test_every_option_has_a_meaning() -> None:
    for options in (GenerateRequest, ModelOptions):
        for name, field in options.model_fields.items():
            assert field.description and field.description.endswith("."), name
    group = typer.main.get_command(build())
    for command in getattr(group, "commands").values():  # noqa: B009
        assert command.help
        for parameter in command.params:
            assert parameter.name == "help" or getattr(parameter, "help", None), (command.name, parameter.name)


if __name__ == "__main__":
    print(json.dumps(surface(), indent=1))  # noqa: T201
