"""One cell: the paper's number, ours over seeds, and whether the two differ by more than chance."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mora.config import RunConfig

from .experiment import Grid, last_step
from .result import result_of, usable

# Student's t, two-sided 95 %, by degrees of freedom; beyond ten seeds the last one errs on the safe side
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Noise = Literal["beyond", "within"]


@dataclass(frozen=True)
class Cell:
    """`values`, one a seed that was run, None where none was; inf where a run diverged and lower is better.

    `errors`: standard errors over the evaluation's documents, one a value, where the metric has them. Units of the table.
    `seeds`: how many the experiment wants.
    """

    paper: float | None
    values: tuple[float, ...] | None
    errors: tuple[float, ...] | None = None
    seeds: int = 1

    @cached_property
    def mean(self) -> float | None:
        return None if self.values is None else statistics.fmean(self.values)

    @cached_property
    def sd(self) -> float | None:
        """Of a seed; None for one seed, or where a run diverged."""
        if self.values is None or len(self.values) < 2 or math.inf in self.values:
            return None
        return statistics.stdev(self.values)

    @cached_property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    @cached_property
    def threshold(self) -> float | None:
        """What the difference must exceed. The paper's number is one more run of the same kind.

        Several seeds: the 95 % prediction interval, t sd sqrt(1 + 1/n). One seed: 1.96 sqrt(2) standard errors over the
        documents, which leaves out what another seed would change. None where neither is known.
        """
        if self.sd is not None and self.values is not None:
            n = len(self.values)
            return T95[min(n - 2, len(T95) - 1)] * self.sd * math.sqrt(1 + 1 / n)
        return 1.96 * math.sqrt(2) * self.errors[0] if self.errors else None

    @cached_property
    def noise(self) -> Noise | None:
        if self.difference is None or self.threshold is None:
            return None
        return "beyond" if abs(self.difference) > self.threshold else "within"


def cell(grid: Grid) -> Cell:
    """Of the results that there are."""
    found = [_measured(grid, config, result) for config, result in results(grid)]
    values = tuple(measured[0] for measured in found if measured)
    errors = tuple(measured[1] for measured in found if measured and measured[1] is not None)
    return Cell(grid.paper_value(), values or None, errors if len(errors) == len(values) else None, len(grid.final()))


def results(grid: Grid) -> list[tuple[RunConfig, dict[str, Any]]]:
    """The final runs that were made, one a seed, with their results; none unless the whole search is there and usable."""
    found = [(config, usable(result_of(config), grid.scale)) for config in grid.final()]
    return [(config, result) for config, result in found if result is not None]


def metrics(grid: Grid, config: RunConfig, result: dict[str, Any]) -> dict[str, float]:
    """At the step that the column shows."""
    return result["metrics"].get(str(grid.column.step or last_step(config, result)), {})


def _measured(grid: Grid, config: RunConfig, result: dict[str, Any]) -> tuple[float, float | None] | None:
    """The metric in the table's unit and its standard error; a run that diverged, or has no number as its metric, is the
    worst there is."""
    higher_is_better = grid.experiment.unit == "percent"
    worst = 0.0 if higher_is_better else math.inf
    if result["status"] == "diverged":
        return worst, None
    found = metrics(grid, config, result)
    if grid.column.metric not in found:
        return None
    factor = 100 if higher_is_better else 1
    value, error = (float(found.get(name, "nan")) for name in (grid.column.metric, f"{grid.column.metric}_stderr"))
    return factor * value if math.isfinite(value) else worst, factor * error if math.isfinite(error) else None
