"""The loop on a small regression: the numbers are those of any other objective, only faster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.small import CONFIG, Regression
from torch import Tensor

from langevin.errors import CheckpointError, NotFiniteError, RequestError
from langevin.training import checkpointing
from langevin.training.loop import learning_rate, train


def state_of(run: Path) -> dict[str, dict[str, Tensor]]:
    newest = run / "checkpoints" / f"{checkpointing.steps_saved(run / 'checkpoints')[-1]:08d}"
    return {n: load_file(newest / f"{n}.safetensors") for n in ("weights", "ema", "optimizer")}


def assert_same(a: Path, b: Path) -> None:
    left, right = state_of(a), state_of(b)
    for part in left:
        assert left[part].keys() == right[part].keys()
        for name in left[part]:
            assert torch.equal(left[part][name], right[part][name]), (part, name)


def test_it_learns_and_keeps_its_papers(tmp_path: Path) -> None:
    metrics = [s.metrics for s in train(Regression(), CONFIG, tmp_path, seed=0) if s.metrics]
    assert metrics[-1]["loss"] < 0.1 * metrics[0]["loss"]
    assert metrics[-1]["twice"] == pytest.approx(2 * metrics[-1]["loss"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(5, 61, 5))
    assert sorted(p.name for p in tmp_path.glob("preview-*.png")) == ["preview-00000030.png", "preview-00000060.png"]
    assert checkpointing.steps_saved(tmp_path / "checkpoints") == [50, 60]


@pytest.mark.parametrize("stop", [1, 9, 10, 23, 59])
def test_a_stopped_run_goes_on_to_the_very_same_state(tmp_path: Path, stop: int) -> None:
    for _ in train(Regression(), CONFIG, tmp_path / "whole", seed=0):
        pass
    steps = train(Regression(), CONFIG, tmp_path / "cut", seed=0)
    for step in steps:
        if step.step == stop:
            steps.close()
    assert checkpointing.steps_saved(tmp_path / "cut" / "checkpoints")[-1] == stop
    for _ in train(Regression(), CONFIG, tmp_path / "cut", seed=0, resume=True):
        pass
    assert_same(tmp_path / "whole", tmp_path / "cut")
    rows = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))


def test_dropout_too_is_a_function_of_the_step(tmp_path: Path) -> None:
    for _ in train(Regression(dropout=0.5), CONFIG, tmp_path / "whole", seed=0):
        pass
    for step in (steps := train(Regression(dropout=0.5), CONFIG, tmp_path / "cut", seed=0)):
        if step.step == 23:
            steps.close()
    torch.manual_seed(12345)
    for _ in train(Regression(dropout=0.5), CONFIG, tmp_path / "cut", seed=0, resume=True):
        torch.rand(3)  # what else the process draws does not matter
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_the_remains_of_a_kill_are_cleared_away(tmp_path: Path) -> None:
    """Half a line of metrics, half a checkpoint, half a removal."""
    for _ in train(Regression(), CONFIG, tmp_path / "whole", seed=0):
        pass
    for step in (steps := train(Regression(), CONFIG, tmp_path / "cut", seed=0)):
        if step.step == 23:
            steps.close()
    checkpoints = tmp_path / "cut" / "checkpoints"
    (tmp_path / "cut" / "metrics.jsonl").open("a").write('{"step": 25, "loss": 0.0')
    for name in (".00000030.0123456789abcdef.tmp", ".00000020.0123456789abcdef.old"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "weights.safetensors").write_bytes(b"half")
    lost = checkpoints / ".00000015.0123456789abcdef.old"  # the only copy of its step
    lost.mkdir()
    for _ in train(Regression(), CONFIG, tmp_path / "cut", seed=0, resume=True):
        pass
    assert_same(tmp_path / "whole", tmp_path / "cut")
    rows = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(5, 61, 5))
    assert sorted(p.name for p in checkpoints.iterdir()) == [lost.name, "00000050", "00000060"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.safetensors", b""),
        ("ema.safetensors", None),
        ("optimizer.safetensors", b"\x08\0\0\0\0\0\0\0{}      1234"),
        ("state.json", b'{"format": 1, "st'),
        ("state.json", b"[]"),
        ("state.json", b'{"format": 1}'),
    ],
)
def test_a_damaged_checkpoint_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    for _ in train(Regression(), CONFIG, tmp_path / "whole", seed=0):
        pass
    for step in (steps := train(Regression(), CONFIG, tmp_path / "cut", seed=0)):
        if step.step == 23:
            steps.close()
    newest = tmp_path / "cut" / "checkpoints" / "00000023"
    if content is None:
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"00000023 is damaged .*remove that folder to go on from step 20") as e:
        next(train(Regression(), CONFIG, tmp_path / "cut", seed=0, resume=True))
    assert "\n" not in str(e.value)
    shutil.rmtree(newest)
    for _ in train(Regression(), CONFIG, tmp_path / "cut", seed=0, resume=True):
        pass
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_weights_of_another_architecture_are_one_line(tmp_path: Path) -> None:
    next(steps := train(Regression(), CONFIG, tmp_path, seed=0))
    steps.close()
    with pytest.raises(CheckpointError, match=r"00000001 holds weights of another architecture.*or another --out$"):
        next(train(Regression(width=9), CONFIG, tmp_path, seed=0, resume=True))
    with pytest.raises(CheckpointError, match="another architecture"):
        checkpointing.load_ema(tmp_path / "checkpoints", Regression(width=9).module)


def test_another_loop_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    next(steps := train(Regression(), CONFIG, tmp_path, seed=0))
    steps.close()
    other = CONFIG.model_copy(update={"beta2": 0.5})
    with pytest.raises(CheckpointError, match=r"made with loop\.beta2 = 0\.99, not 0\.5: resume"):
        next(train(Regression(), other, tmp_path, seed=0, resume=True))


def test_another_seed_or_other_data_is_not_resumed(tmp_path: Path) -> None:
    steps = train(Regression(), CONFIG, tmp_path, seed=0)
    next(steps)
    steps.close()
    with pytest.raises(CheckpointError, match="seed = 0, not 1"):
        next(train(Regression(), CONFIG, tmp_path, seed=1, resume=True))
    with pytest.raises(CheckpointError, match="data = 'a', not 'b'"):
        next(train(Regression("b"), CONFIG, tmp_path, seed=0, resume=True))
    with pytest.raises(RequestError, match="already holds a run"):
        next(train(Regression(), CONFIG, tmp_path, seed=0))


def test_how_often_it_saves_may_change(tmp_path: Path) -> None:
    steps = train(Regression(), CONFIG, tmp_path, seed=0)
    next(steps)
    steps.close()
    changed = CONFIG.model_copy(update={"save_every": 3, "log_every": 2, "keep": 5})
    assert next(train(Regression(), changed, tmp_path, seed=0, resume=True)).step == 2


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_checkpoint_kept(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"nan at step 24.*checkpoint of step 20"):
        for _ in train(Regression(poison=24), CONFIG, tmp_path, seed=0):
            pass
    assert checkpointing.steps_saved(tmp_path / "checkpoints")[-1] == 20


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    """The loss of step 9 is finite, its gradient is not, and a checkpoint is due after that step."""

    class Root(Regression):
        def loss(self, samples: list[tuple[int, int]], step: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss, extra = super().loss(samples, step)
            return (loss + (loss - loss).sqrt() if step == 9 else loss), extra

    with pytest.raises(NotFiniteError, match=r"gradient's norm is nan at step 9 .*there is no checkpoint yet"):
        for _ in train(Root(), CONFIG, tmp_path, seed=0):
            pass
    assert checkpointing.steps_saved(tmp_path / "checkpoints") == []


def test_the_learning_rate_rises_then_falls_as_a_half_cosine() -> None:
    rates = [learning_rate(CONFIG, s) for s in range(CONFIG.steps + 1)]
    assert rates[0] == pytest.approx(0.02 / 5) and rates[4] == rates[5] == pytest.approx(0.02)
    middle = 5 + (60 - 5) / 2
    assert (rates[int(middle)] + rates[int(middle) + 1]) / 2 == pytest.approx(0.02 * (1 + 0.02) / 2, rel=1e-6)
    assert rates[-1] == pytest.approx(0.02 * 0.02)
