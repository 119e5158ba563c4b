"""The pages' own examples are run.

A block ```python is executed in a name space of its own. In a block ```console every line `$ langevin ...` or
`langevin ...` is a command, which must end with code 0 (or the one in ```console exit=2); what is shown below a line
that begins with `$` is compared with what it prints. All blocks of a page share a temporary folder, in order. A block
is left out by a comment before it that says why: <!-- not run: reason -->.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from langevin.cli import main as cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSED_ONLY = {
    "compare": "tests/baselines runs it",
    "evaluate": "tests/cli runs it",
    "finetune": "tests/training runs it",
    "selftest": "tests/evaluation runs it",
    "train": "tests/training runs it",
}
"""Commands that take minutes: here their options are checked, without running."""

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>python|console)(?P<options>[^\n]*)\n(?P<body>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    options: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m["kind"], m["options"].strip(), m["body"])
        for m in _BLOCK.finditer(text)
        if not m["reason"]
    ]


def run_console(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    expected_code = int(block.options.removeprefix("exit=") or 0)
    shown: list[tuple[str, list[str] | None]] = []
    for line in block.body.splitlines():
        if re.match(r"(\$ )?langevin ", line):
            shown.append((line.removeprefix("$ "), [] if line.startswith("$") else None))
        elif shown and shown[-1][1] is not None:
            shown[-1][1].append(line)
        else:
            raise AssertionError(f"{block}: {line!r} is neither a command nor shown below one")
    for command, output in shown:
        words = shlex.split(command, comments=True)[1:]
        if words[0] in PARSED_ONLY:
            parse(words)
            continue
        code = cli.run(words)
        out, err = capsys.readouterr()
        assert code == expected_code, (str(block), command, err)
        if output is not None:
            assert (err + out).splitlines() == output, (str(block), command)


def parse(words: list[str]) -> None:
    group: Any = typer.main.get_command(cli.build())
    group.commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.kind == "console":
            run_console(block, capsys)
        else:
            code = compile("\n" * block.line + block.body, str(page), "exec", dont_inherit=True)
            exec(code, {"__name__": "example"})
        capsys.readouterr()


def test_every_option_is_on_the_page() -> None:
    from langevin.tasks.request import GenerateRequest, ModelOptions

    page = (ROOT / "docs" / "text-to-image.md").read_text(encoding="utf-8")
    for name in (*GenerateRequest.model_fields, *ModelOptions.model_fields):
        assert f"`{name}`" in page, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
