"""Command-line options from the definitions in `langevin.tasks.request`: nothing is said twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from langevin.errors import RequestError
from langevin.tasks.options import Options, Shown, bounds, choices, show

_MOST_IN_METAVAR = 6

O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass(frozen=True)
class _Shape:
    """How a field is written on the command line."""

    kind: type
    many: bool = False
    mapping: bool = False

    @property
    def repeated(self) -> bool:
        """Texts may hold commas: the option is given once for each. Numbers stand in one, with commas."""
        return self.many and self.kind is str


def parameters(options: type[Options], *, arguments: Iterable[str] = ()) -> list[inspect.Parameter]:
    """One parameter for typer a field. The fields in `arguments` are positional, the others are `--options`.

    Bounds are checked by the definitions alone, so that every way in gives the same message.
    """
    return [
        _parameter(name, field, name in set(arguments))
        for name, field in options.model_fields.items()
        if _shown(field).written
    ]


def collect(options: type[O], values: dict[str, Any]) -> O:
    """The options from what the command line gave; what was not given keeps its default."""
    given = {}
    for name, field in options.model_fields.items():
        value = values.get(name)
        if value is None or value == []:
            continue
        shape = _shape(field.annotation)
        if shape.mapping:
            value = dict(_pair(name, text) for text in value)
        elif shape.repeated:
            value = tuple(value)
        elif shape.many:
            value = tuple(_number(name, part, shape.kind) for part in value.split(","))
        given[name] = value
    return options(**given)


def command(
    app: typer.Typer, function: Callable[..., Any], name: str, groups: dict[str, tuple[type[Options], tuple[str, ...]]]
) -> None:
    """Registers `function` with the options of `groups` in place of its parameters of those names.

    A group is `parameter name: (options class, names of its positional fields)`; the function is called with a built
    object for each group and with its other parameters as they are. Its own arguments come before those of the groups.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name not in groups]
    fields = [p for options, arguments in groups.values() for p in parameters(options, arguments=arguments)]

    def call(**values: Any) -> Any:
        built = {group: collect(options, values) for group, (options, _) in groups.items()}
        return function(**built, **{p.name: values[p.name] for p in own})

    own = sorted((p.replace(kind=p.KEYWORD_ONLY) for p in own), key=_is_argument, reverse=True)
    arguments = sum(map(_is_argument, own))
    signature = inspect.Signature([*own[:arguments], *fields, *own[arguments:]])
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    call.__doc__ = function.__doc__
    call.__name__ = function.__name__
    app.command(name)(call)


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(
        isinstance(item, typer.models.ArgumentInfo) for item in getattr(parameter.annotation, "__metadata__", ())
    )


def _parameter(name: str, field: FieldInfo, positional: bool) -> inspect.Parameter:
    shape = _shape(field.annotation)
    kind: Any = list[str] if shape.mapping or shape.repeated else str if shape.many else shape.kind
    text = _help(field, shape)
    info: Any
    if positional:
        info = typer.Argument(help=text, metavar=name.upper(), show_default=False)
    else:
        shown = _shown(field)
        short = [shown.flag] if shown.flag else []
        flag = f"--{shown.option or name.replace('_', '-')}"
        info = typer.Option(flag, *short, help=text, metavar=_metavar(field, shape), show_default=False)
    default: Any = inspect.Parameter.empty if field.is_required() else False if kind is bool else None
    annotation = kind if field.is_required() or kind is bool else kind | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def _help(field: FieldInfo, shape: _Shape) -> str:
    text = (field.description or "").rstrip(".")
    words = choices(field.annotation)
    if len(words) > _MOST_IN_METAVAR:
        text = f"{text}: {', '.join(words)}"
    notes = []
    low, high = bounds(field)
    if low is not None and high is not None and high < 2**63:
        notes.append(f"{low} to {high}")
    if shown := _shown(field).default:
        notes.append(f"default: {shown}")
    elif not field.is_required() and shape.kind is not bool and field.default not in (None, ""):
        notes.append(f"default: {field.default}")
    return f"{text}. [{'; '.join(notes)}]" if notes else f"{text}."


def _shown(field: FieldInfo) -> Shown:
    return next((item for item in field.metadata if isinstance(item, Shown)), Shown())


def _metavar(field: FieldInfo, shape: _Shape) -> str | None:
    if shape.kind is bool:
        return None
    if shape.mapping:
        return "NAME=VALUE"
    words = choices(field.annotation)
    if words and len(words) <= _MOST_IN_METAVAR:
        return "|".join(words)
    letter = {int: "N", float: "X", str: "TEXT"}[shape.kind]
    return f"{letter},{letter}..." if shape.many and not shape.repeated else letter


def _shape(annotation: Any) -> _Shape:
    if isinstance(annotation, type) and annotation in (int, float, str, bool):
        return _Shape(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return _Shape(str)
    if origin is dict:
        return _Shape(str, mapping=True)
    inner = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    if origin is tuple:
        return _Shape(_shape(inner[0]).kind, many=True)
    if inner:
        return _shape(inner[0])
    raise TypeError(f"no command-line form for {annotation}")


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text.strip())
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} {show(text)} is not {what}: give numbers with commas between them") from None


def _pair(name: str, text: str) -> tuple[str, int | float | bool | str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RequestError(f"{name} {show(text)} has no value: give NAME=VALUE")
    if value in ("true", "false"):
        return key, value == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value
