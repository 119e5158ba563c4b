"""Killed with SIGKILL at random moments and resumed, a run reaches the very same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, kills: int, workers: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killing", str(tmp_path), str(kills), str(workers)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    result = json.loads(done.stdout)
    assert result["kills"] == kills and result["same"] and result["workers"] == workers
