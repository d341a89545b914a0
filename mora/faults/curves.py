"""What a killed run has logged against the uninterrupted one: no step lost, none doubled, the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = dict[str, Any]
TIMES = ("restart_s",)  # what the clock decides


@dataclass(frozen=True)
class Compared:
    """`lost` and `doubled`: steps, or evaluations of one. `difference`: the largest of a loss or metric."""

    steps: int
    lost: int
    doubled: int
    difference: float

    def equal(self, tolerance: float) -> bool:
        return not self.lost and not self.doubled and self.difference <= tolerance


def compare(rows: Sequence[Row], whole: Sequence[Row], ended: bool) -> Compared:
    """`rows` against the uninterrupted run's; all once it has `ended`, until then all up to the last there."""
    keys, expected = [_key(row) for row in rows], {_key(row): row for row in whole}
    by_key = dict(zip(keys, rows, strict=True))
    due = [key for key in expected if ended or key <= max(keys, default=(0, 0))]
    unordered = sum(a >= b for a, b in pairwise(keys))
    return Compared(
        steps=sum(not evaluated for _, evaluated in by_key),
        lost=sum(key not in by_key for key in due),
        doubled=unordered + sum(key not in expected for key in keys),
        difference=max(
            (_difference(by_key[key], expected[key]) for key in expected.keys() & by_key.keys()), default=0.0
        ),
    )


def _key(row: Row) -> tuple[int, int]:
    """Sort rows by step, and each step before its evaluation."""
    return row["step"], int("loss" not in row)


def _difference(row: Row, other: Row) -> float:
    """Infinite where one has what the other has not."""
    names = row.keys() - set(TIMES)
    if names != other.keys() - set(TIMES):
        return math.inf
    return max(_apart(float(row[name]), float(other[name])) for name in names)


def _apart(a: float, b: float) -> float:
    """Infinite if one of them alone is NaN, over which `max` would pass."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return math.inf if math.isnan(a - b) else abs(a - b)
