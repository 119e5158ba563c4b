"""Every recipe is built, and run for a few steps on a small scale: only its networks and pictures are made smaller."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from langevin.training import metrics
from langevin.training.objectives import pixels
from langevin.training.recipes import RECIPES
from langevin.training.run import run_recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_runs(name: str, grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_PREVIEWS", 10)  # 64 would take longer than the training
    recipe = RECIPES[name]()
    config = recipe.smallest()
    assert type(config) is type(recipe) and list(config.loops) == list(recipe.loops)
    run_recipe(name, config, grey, tmp_path / "run", stages=list(config.loops), device="cpu", resume=False)
    for stage, loop in config.loops.items():
        rows = metrics.read(tmp_path / "run" / stage / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, loop.steps + 1))
        assert all(math.isfinite(row["loss"]) for row in rows)
    finished = list((tmp_path / "run").glob("*.safetensors"))
    assert finished and all(path.stat().st_size > 0 for path in finished)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_header_says_what_to_expect(name: str) -> None:
    import importlib

    header = importlib.import_module(RECIPES[name].__module__).__doc__ or ""
    for line in ("Command:", "Data:", "Hardware:", "Time:", "Expected:"):
        assert line in header, line
