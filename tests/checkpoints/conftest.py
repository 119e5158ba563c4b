from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoints import tiny


@pytest.fixture(scope="session")
def sd1_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the 1.x kind, float16, as one file."""
    return tiny.save(tmp_path_factory.mktemp("files") / "sd1.safetensors", tiny.single_file(tiny.SD1))


@pytest.fixture(scope="session")
def sd2_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the 2.x kind that states its prediction type, float16, as one file."""
    path = tmp_path_factory.mktemp("files") / "sd2.safetensors"
    return tiny.save(path, tiny.single_file(tiny.SD2), {"modelspec.prediction_type": "v"})
