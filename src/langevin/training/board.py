"""The recorded figures for TensorBoard, beside the JSON lines that are always written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langevin.errors import RequestError
from langevin.training.checkpointing import steps_saved


def check_board() -> None:
    """RequestError where TensorBoard is missing."""
    if find_spec("tensorboard") is None:
        raise RequestError("--tensorboard needs tensorboard, which is missing: pip install tensorboard")


class Board:
    """Writes figures to `folder/tensorboard`, or nothing where it is not wanted."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self._writer: Any = None
        if wanted:
            from torch.utils.tensorboard import SummaryWriter

            # What was recorded after the checkpoint that a killed run goes on from is taken back.
            begun = max(steps_saved(folder / "checkpoints"), default=0)
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=begun + 1)

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items() if self._writer is not None else ():
            self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
