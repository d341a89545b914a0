"""What was found for a cell: its runs and results, resolved once; the paper's number, ours over seeds, and the noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mora.config import ConfigError, RunConfig
from mora.evaluate.metrics import facts
from mora.results import Metric, Metrics, RunResult

from .experiment import Candidate, CellSpec
from .result import result_of, usable

# Student's t, two-sided 95 %, by degrees of freedom; beyond ten seeds the last one errs on the safe side
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Noise = Literal["beyond", "within"]
Counts = Callable[[RunResult | None, str], Any]  # whether a result of that scale takes part in a choice
Score = float | str | None  # of a candidate: its selection metric, "diverged", or None without a result that counts


@dataclass(frozen=True)
class CellRuns:
    """A cell's search and final runs, and what of them was made. `final`: one a seed; none until the candidate is chosen.

    `results`: those of the final runs that there are, one a seed.
    """

    spec: CellSpec
    scores: list[tuple[Candidate, Score]]
    best: Candidate | None
    final: list[RunConfig]
    results: list[tuple[RunConfig, RunResult]]

    @property
    def needed(self) -> list[RunConfig]:
        """All runs that the cell may need, its rate chosen or not yet: what a plan counts."""
        spec = self.spec
        if not spec.exists:
            return []
        stand_in = self.final or [spec.run(spec.candidates[0], seed) for seed in spec.seeds]
        if not spec.at_scale.search and spec.search and not self.final:
            stand_in = stand_in[1:]  # the winner of the search is the first seed's run
        return [*spec.search, *stand_in]

    @property
    def chose_edge(self) -> bool:
        """Whether the chosen rate is the highest or the lowest of those searched: there might be a better one beyond."""
        best = self.best
        if not self.spec.search or best is None:
            return False
        rates = sorted(c.lr for c in self.spec.candidates if c.lr is not None and c.overrides == best.overrides)
        return best.lr in (rates[0], rates[-1])

    def metrics(self, config: RunConfig, result: RunResult) -> Metrics:
        """Of a final run, at the step that the column shows."""
        return result.metrics.get(self.spec.column.step or last_step(config, result), {})

    @cached_property
    def cell(self) -> Cell:
        """Of the results that there are."""
        found = [self.measured(config, result) for config, result in self.results]
        values = tuple(measured[0] for measured in found if measured)
        errors = tuple(measured[1] for measured in found if measured and measured[1] is not None)
        known = errors if len(errors) == len(values) else None
        return Cell(self.spec.paper_value, values or None, known, len(self.final))

    def measured(self, config: RunConfig, result: RunResult) -> tuple[float, float | None] | None:
        """The metric in the table's unit and its standard error; a run that diverged, or has no number as its metric, is the
        worst there is."""
        metric = self.metrics(config, result).get(self.spec.column.metric)
        factor = 100 if self.spec.experiment.unit == "percent" else 1
        if result.status == "diverged" or (metric is not None and not metric.finite):
            return 0.0 if higher_is_better(self.spec.column.metric, metric) else math.inf, None
        if metric is None:
            return None
        error = metric.stderr
        return factor * metric.value, None if error is None or not math.isfinite(error) else factor * error


def resolve(spec: CellSpec, counts: Counts = usable) -> CellRuns:
    """Reads the results of the cell's runs. A search takes part in the choice, and a result in the cell, if it `counts`.

    The candidate with the lowest selection metric at the search's last step is chosen, once all are there. A diverged run
    counts as the worst; where all did, the first is taken, so that the cell says so.
    """
    scores = [(c, _score(spec, run, counts)) for c, run in zip(spec.candidates, spec.search, strict=False)]
    best: Candidate | None = spec.candidates[0]
    if scores:
        losses = [score if isinstance(score, float) else math.inf for _, score in scores]
        best = None if any(score is None for _, score in scores) else scores[losses.index(min(losses))][0]
    final = [spec.run(best, seed) for seed in spec.seeds] if best is not None and spec.exists else []
    found = [(config, result_of(config)) for config in final]
    results = [(config, result) for config, result in found if result is not None and counts(result, spec.scale)]
    return CellRuns(spec, scores, best, final, results)


def resolve_all(rows: list[list[CellSpec]]) -> list[list[CellRuns]]:
    return [[resolve(spec) for spec in row] for row in rows]


def _score(spec: CellSpec, config: RunConfig, counts: Counts) -> Score:
    result = result_of(config)
    if result is None or not counts(result, spec.scale):
        return None
    if result.status != "done":
        return result.status
    step, name = last_step(config, result), spec.experiment.selection
    metric = result.metrics.get(step, {}).get(name)
    if metric is None:
        raise ConfigError(
            f"{result.run_id}: no metric {name} at step {step}: remove the result, and the run is done again"
        )
    return metric.value if metric.finite else "diverged"


def last_step(config: RunConfig, result: RunResult) -> int:
    """Where the run ended: from its configuration, or where that follows from the data, from its result."""
    if not config.method.trains:
        return 0
    if config.knows_steps:
        return config.last_step
    if result.last_step is None:
        raise ConfigError(f"{result.run_id}: no field last_step: remove the result, and the run is done again")
    return result.last_step


def higher_is_better(name: str, metric: Metric | None = None) -> bool:
    """As the metric's task says. Raises: ConfigError where no task says it."""
    known = facts(name).higher_is_better if metric is None else metric.higher_is_better
    if known is None:
        raise ConfigError(f"metric {name}: no task in mora/evaluate/tasks says whether higher is better")
    return known


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
