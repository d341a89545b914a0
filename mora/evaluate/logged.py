"""The scored documents of an evaluation. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoggedSamples:
    """The scored documents of one task: a header that says how `score` is aggregated, and one row per document."""

    header: dict[str, Any]
    rows: list[dict[str, Any]]
