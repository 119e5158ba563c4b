"""Two processes that speak through gloo, as `torchrun` starts them, against one with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.several import CONFIG, run
from tests.training.small import Denoise, small_clip

from langevin.errors import RequestError
from langevin.training import checkpointing, distributed
from langevin.training.loop import check_fits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    out = tmp_path_factory.mktemp("processes")
    run(Denoise(), out / "one")
    run(Denoise(), out / "one-then-two", steps=4)
    run(small_clip(), out / "one-clip")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "training" / "several.py"), str(out), str(shapes)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (out / "stderr").write_text(done.stderr)
    run(Denoise(), out / "two-then-one")
    return out


def assert_close(left: Path, right: Path) -> None:
    """To rounding. Where a gradient is nearly zero Adam makes much of rounding: a few elements may differ by more, but
    by far less than the 4e-3 that the steps can have moved them. The gradient of a key's bias is zero in truth."""
    for name in ("weights", "ema", "optimizer"):
        a, b = (load_file(p / "checkpoints" / "00000006" / f"{name}.safetensors") for p in (left, right))
        assert a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)
        differences = torch.cat([(a[k] - b[k]).abs().flatten() for k in a if "k_proj.bias" not in k])
        assert differences.max() <= 1e-4 and differences.mean() <= 1e-7, name


@pytest.mark.parametrize("name", ["ddp", "fsdp", "one-then-two", "two-then-one"])
def test_two_processes_reach_the_weights_of_one(folder: Path, name: str) -> None:
    """Also in two parts each, and where a checkpoint of one process goes on with two, or the other way round."""
    assert_close(folder / "one", folder / name)
    assert checkpointing.steps_saved(folder / name / "checkpoints")[-1] == 6
    rows, expected = (
        [json.loads(line) for line in (folder / n / "metrics.jsonl").read_text().splitlines()] for n in (name, "one")
    )
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["again"] == pytest.approx(other["again"], abs=1e-5)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], abs=1e-4)
    drawn = [float((folder / n / "preview-00000006.png").read_text()) for n in (name, "one")]
    assert drawn[0] == pytest.approx(drawn[1], abs=1e-3)


def test_the_contrast_goes_over_all_processes(folder: Path) -> None:
    assert_close(folder / "one-clip", folder / "clip")


def test_a_loss_that_is_not_finite_in_one_process_ends_all(folder: Path) -> None:
    assert (folder / "poisoned-0").read_text() == (
        "the loss is not finite at step 1 in another process, which names the files"
    )
    assert (folder / "poisoned-1").read_text().startswith("the loss is nan at step 1 (samples ")


def test_a_recipe_is_written_and_told_once(folder: Path) -> None:
    said = (folder / "stderr").read_text()
    assert said.count("pictures, fingerprint") == 1 and "on cpu and 1 more processes" in said
    assert json.loads((folder / "recipe" / "run.json").read_text())["environment"]["processes"] == 2
    assert checkpointing.steps_saved(folder / "recipe" / "autoencoder" / "checkpoints") == [2, 4]
    assert (folder / "recipe" / "autoencoder" / "metrics.png").is_file()


def test_what_does_not_go_over_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(RequestError, match=r"batch_size 8 is not a multiple of 3 processes x loop\.accumulate 1"):
        check_fits(Denoise(), CONFIG)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for change, message in [
        ({"precision": "float16"}, "does not go with fsdp"),
        ({"optimizer": "adafactor"}, "not sharded by fsdp"),
        ({"optimizer": "muon"}, "whole matrices, which fsdp cuts"),
    ]:
        config = type(CONFIG).model_validate({**CONFIG.model_dump(), "parallel": "fsdp", **change})
        with pytest.raises(RequestError, match=message):
            check_fits(Denoise(), config)
    with pytest.raises(RequestError, match="logit_scale is a single number, which FSDP2 cannot cut: choose ddp"):
        check_fits(small_clip(), CONFIG.model_copy(update={"parallel": "fsdp"}))


def test_each_process_has_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.share(list(range(12))))
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    monkeypatch.undo()
    assert distributed.share([1, 2]) == [1, 2] and distributed.mean({"a": 1.0}) == {"a": 1.0}
    assert torch.equal(distributed.gather_rows(torch.ones(2)), torch.ones(2))
