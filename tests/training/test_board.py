"""Figures for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest

from langevin.errors import RequestError
from langevin.training.board import Board, check_board


def test_figures_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Board(tmp_path, True) as board:
        for step in (5, 10, 15):
            board.add(step, {"loss": 1 / step, "learning_rate": 0.5})
    # A run that was killed goes on from the checkpoint of step 10: what came after is taken back.
    checkpoint = tmp_path / "checkpoints" / "00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    with Board(tmp_path, True) as board:
        board.add(15, {"loss": 2.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    assert [step for step, _ in found] == [5, 10, 15]
    assert [value for _, value in found] == pytest.approx([0.2, 0.1, 2.0])
    assert [e.step for e in events.Scalars("learning_rate")] == [5, 10]


def test_nothing_is_written_unless_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Board(tmp_path, False) as board:
        board.add(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("langevin.training.board.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="--tensorboard needs tensorboard, which is missing"):
        check_board()
