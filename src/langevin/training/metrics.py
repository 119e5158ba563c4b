"""The recorded figures of a run: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from langevin.checkpoints.atomic import atomic_write


def record(path: Path, row: dict[str, Any]) -> None:
    """Append one row; `step` is one of its fields."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none where it does not exist. A line that a killed process did not finish is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def cut(path: Path, step: int) -> None:
    """Drop what was recorded after the checkpoint that a killed run goes on from: it will be recorded again."""
    if path.is_file():
        rows = [row for row in read(path) if row["step"] <= step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
