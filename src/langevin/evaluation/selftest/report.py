"""What a self-test found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured number and where it must lie."""

    subject: str
    """The sampler, with the options that are not its defaults, or the prediction type."""
    check: str
    """The problem that was solved."""
    quantity: str
    measured: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class SelftestReport:
    """All rows, in the order in which they were measured."""

    rows: tuple[Row, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.passed)

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN and infinities as strings."""

        def plain(value: object) -> object:
            finite = not isinstance(value, float) or abs(value) < float("inf")
            return value if finite else str(value)

        rows = [{**{k: plain(v) for k, v in asdict(row).items()}, "passed": row.passed} for row in self.rows]
        return {"passed": self.passed, "seconds": round(self.seconds, 3), "rows": rows}
