"""`langevin`: the commands, their exit codes and how errors are shown.

Exit codes: 0 done; 1 a comparison or self-test failed; 2 the request or a file is wrong (one line says what);
130 stopped by Ctrl-C. Whatever is not an error of the user's keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from langevin import __version__
from langevin.cli import (
    compare,
    control,
    convert,
    evaluate,
    explain,
    finetune,
    from_picture,
    generate,
    hint,
    invert,
    large,
    mapped,
    merge,
    selftest,
    shapes,
    train,
)
from langevin.errors import LangevinError

# typer 0.29 carries its own copy of click: its error classes are reached through one that typer exports.
_ClickError: Any = typer.BadParameter.__mro__[2]


def build() -> typer.Typer:
    """The application with every command. No command's module imports torch before it runs."""
    app = typer.Typer(
        name="langevin",
        help="Diffusion models: make pictures, train, convert, measure.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for module in (
        generate,
        from_picture,
        invert,
        control,
        large,
        explain,
        convert,
        merge,
        selftest,
        train,
        finetune,
        evaluate,
        compare,
        shapes,
        hint,
        mapped,
    ):
        module.register(app)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and gives its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = build()(args=arguments, prog_name="langevin", standalone_mode=False)
        sys.stdout.flush()
        return _stopped() if code == 130 else code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):  # typer gives one, the other, or the code, by its version
        return _stopped()
    except LangevinError as error:
        return _complain(str(error))
    except BrokenPipeError:
        # The reader of our output has left (`langevin ... | head`): keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _ClickError as error:
        message = error.format_message()
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "langevin"
        return _complain(f"{_first_lower(message.rstrip('.'))}; see {where} --help")


def main() -> None:
    """Entry point of the `langevin` command."""
    sys.exit(run())


def _stopped() -> int:
    print("stopped", file=sys.stderr)  # noqa: T201
    return 130


def _complain(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return 2


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"langevin {__version__}")
        raise typer.Exit
