"""What a part of the whole evaluation finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langevin.evaluation.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Part:
    """Figures, and what else is to be said beside them."""

    figures: tuple[Figure, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain values, ready for JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; in the details null for what is not finite."""
        return {"figures": [figure.to_json() for figure in self.figures], "details": _plain(self.details)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
