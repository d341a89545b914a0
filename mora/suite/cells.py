"""Resolve a cell once: its runs and results, the paper's number, and ours over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from mora.config import ConfigError, RunConfig
from mora.evaluate.metrics import facts
from mora.planner import counts
from mora.results import Metric, Metrics, RunResult

from . import verdicts
from .cell_specs import Candidate, CellSpec
from .selection import Accepts, Choice, choose, last_step
from .usable import reportable, result_of


class PlannedRun(NamedTuple):
    """A run of a cell, whether made yet or not, and its arguments of run.py other than learning rate and seed."""

    config: RunConfig
    overrides: list[str]


@dataclass(frozen=True)
class ResolvedCell:
    """A cell's search and final runs, and their results.

    `final_runs` has one run per seed; it is empty until the search has chosen. `results` has the results of those final
    runs that were made.
    """

    spec: CellSpec
    choice: Choice
    final_runs: list[RunConfig]
    results: list[tuple[RunConfig, RunResult]]

    @property
    def needed(self) -> list[RunConfig]:
        """All runs that the cell may need, whether or not its rate is chosen yet. A plan counts these."""
        spec = self.spec
        if not spec.exists:
            return []
        stand_in = self.final_runs or [spec.run(spec.search_space[0], seed) for seed in spec.seeds]
        if not spec.at_scale.search and spec.search_runs and not self.final_runs:
            stand_in = stand_in[1:]  # the winner of the search is the first seed's run
        return [*spec.search_runs, *self.choice.missing, *stand_in]

    @property
    def selected(self) -> Candidate | None:
        return self.choice.selected

    @property
    def of_search(self) -> ResolvedCell:
        """The cell whose search decides this cell's choice."""
        return replace(self, spec=self.spec.searched)

    @property
    def planned_search_runs(self) -> list[PlannedRun]:
        """All runs that the choice rests on or asks for: the search, then rates beyond its edge, then second seeds."""
        first, choice = self.spec.at_scale.seeds[0], self.choice
        if not self.spec.search_runs:
            return []
        runs = [(candidate, first) for candidate, _ in choice.scores]
        if not choice.second_seed:  # then what is missing is a rate beyond the edge
            runs += [(Candidate(choice.selected.overrides, c.lr), first) for c in choice.missing if choice.selected]
        runs += [(candidate, self.spec.at_scale.seeds[1]) for candidate in choice.second_seed]
        more = self.spec.at_scale.search
        return [
            PlannedRun(self.spec.run(c, seed, searching=True), [*self.spec.searched.base, *c.overrides, *more])
            for c, seed in runs
        ]

    @property
    def planned_final_runs(self) -> list[PlannedRun]:
        """The final runs; none until the candidate is chosen."""
        overrides = [*self.spec.base, *(self.selected.overrides if self.selected else ())]
        return [PlannedRun(config, overrides) for config in self.final_runs]

    def metrics(self, config: RunConfig, result: RunResult) -> Metrics:
        """Return the metrics of a final run at the step that the column shows."""
        return result.metrics.get(self.spec.column.step or last_step(config, result), {})

    @cached_property
    def shown(self) -> list[Metric]:
        """The column's metric of each final run that has it."""
        name = self.spec.column.metric
        return [metric for c, r in self.results if (metric := self.metrics(c, r).get(name)) is not None]

    @cached_property
    def numbers(self) -> CellNumbers:
        """The paper's number and ours, from the results that exist."""
        measurements = [self.measured(config, result) for config, result in self.results]
        values = tuple(measured[0] for measured in measurements if measured)
        errors = tuple(measured[1] for measured in measurements if measured and measured[1] is not None)
        known = errors if len(errors) == len(values) else None
        return CellNumbers(self.spec.paper_value, values or None, known, len(self.final_runs))

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """The values of the cell by seed, in the table's unit."""
        measured = ((config.seed, self.measured(config, result)) for config, result in self.results)
        return {seed: value[0] for seed, value in measured if value}

    @cached_property
    def at_floor(self) -> bool:
        return at_floor([self])

    @property
    def floor_tested(self) -> bool:
        """Whether the score can be compared with its floor: its error is known, or the metric has no floor."""
        return not self.shown or self.shown[0].floor is None or _floor_error(self.shown) is not None

    @cached_property
    def trainable(self) -> list[int]:
        """The parameter counts that the runs report, else the count of their configuration; empty if neither is known."""
        with suppress(ValueError):  # or ConfigError: a model or method that cannot be counted without its weights
            return [r.parameters.trainable for _, r in self.results] or [counts.trainable(self.spec.config)]
        return []

    @cached_property
    def square(self) -> counts.Square | None:
        """The size of MoRA's M; None for other methods, or if the model's shape is not known."""
        with suppress(ValueError):
            return counts.square(self.spec.config)
        return None

    def measured(self, config: RunConfig, result: RunResult) -> tuple[float, float | None] | None:
        """Return the metric and its standard error in the table's unit.

        A run that diverged, or whose metric is not finite, gets the worst value there is.
        """
        metric = self.metrics(config, result).get(self.spec.column.metric)
        factor = 100 if self.spec.experiment.unit == "percent" else 1
        if result.status == "diverged" or (metric is not None and not metric.finite):
            return 0.0 if higher_is_better(self.spec.column.metric, metric) else math.inf, None
        if metric is None:
            return None
        error = metric.stderr
        return factor * metric.value, None if error is None or not math.isfinite(error) else factor * error


def at_floor(cells: list[ResolvedCell]) -> bool:
    """Return whether the mean over the cells shows no skill.

    It shows none if it is at most `verdicts.AT_FLOOR` standard errors above the score of a model that knows nothing. The
    answer is False if a cell was not run or its metric has no floor.
    """
    height = above_floor(cells)
    if height is None:
        return False
    errors = [_floor_error(cell.shown) or 0.0 for cell in cells]
    return height <= verdicts.AT_FLOOR * math.hypot(*errors) / len(cells)


def score_at_floor(metric: Metric) -> bool:
    """Return whether a single score shows no skill, by the same rule as `at_floor`."""
    if metric.floor is None:
        return False
    return metric.value - metric.floor <= verdicts.AT_FLOOR * (_floor_error([metric]) or 0.0)


def _floor_error(scores: Sequence[Metric]) -> float | None:
    """Return the standard error over documents of the first of these scores that has one other than zero.

    If none has, since all answers are right or all are wrong, return that of a share of as many documents. None if the
    number of documents is not known either.
    """
    own = (m.stderr for m in scores if m.stderr and math.isfinite(m.stderr))
    shares = (verdicts.share_error(m.value, m.documents) for m in scores if m.documents)
    return next(own, None) or next(shares, None)


def above_floor(cells: list[ResolvedCell]) -> float | None:
    """Return how far the mean over the cells stands above the score of a model that knows nothing.

    None if a cell was not run, its metric has no floor, or a score is not finite.
    """
    heights = []
    for cell in cells:
        if not cell.shown or cell.shown[0].floor is None or not all(metric.finite for metric in cell.shown):
            return None
        heights.append(statistics.fmean(metric.value for metric in cell.shown) - cell.shown[0].floor)
    return statistics.fmean(heights) if heights else None


def steps_to(metrics: Mapping[int, Metrics], name: str, level: float) -> float | None:
    """Return the step at which a growing metric reached `level`, interpolated linearly; None if it never did."""
    before: tuple[int, float] | None = None
    for step in sorted(metrics):
        if (score := metrics[step].get(name)) is None or not score.finite:
            continue
        if score.value >= level:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (level - before[1]) / (score.value - before[1])
        before = step, score.value
    return None


def resolve(spec: CellSpec, accepts: Accepts = reportable) -> ResolvedCell:
    """Read the results of the cell's runs. Only results that `accepts` lets pass enter the choice and the cell."""
    choice = choose(spec, accepts)
    chosen = choice.selected if spec.exists else None
    final_runs = [spec.run(chosen, seed) for seed in spec.seeds] if chosen is not None else []
    pairs = [(config, result_of(config)) for config in final_runs]
    results = [(config, result) for config, result in pairs if result is not None and accepts(result, spec.scale)]
    return ResolvedCell(spec, choice, final_runs, results)


def in_order(cells: Sequence[ResolvedCell]) -> Iterator[PlannedRun]:
    """Yield the runs in the order in which they are started.

    First come the searches, since other runs wait for them, then the further runs that their choices ask for, then the
    final runs of those cells whose choice is final.
    """
    for cell in cells:
        yield from cell.planned_search_runs[: len(cell.spec.search_runs)]
    for cell in cells:
        yield from cell.planned_search_runs[len(cell.spec.search_runs) :]
    for cell in cells:
        if not cell.choice.missing:
            yield from cell.planned_final_runs


def resolve_all(rows: list[list[CellSpec]]) -> list[list[ResolvedCell]]:
    """Resolve the cells of one experiment at one scale.

    Cells that show different metrics of the same runs are resolved once, together.
    """
    resolved: dict[tuple[object, ...], ResolvedCell] = {}

    def shared(spec: CellSpec) -> ResolvedCell:
        key = (spec.exists, *spec.base, *spec.search_space)
        if key not in resolved:
            resolved[key] = resolve(spec)
        return replace(resolved[key], spec=spec)

    return [[shared(spec) for spec in row] for row in rows]


def higher_is_better(name: str, metric: Metric | None = None) -> bool:
    """Return the direction that the metric's task gives. Raises ConfigError if no task gives one."""
    known = facts(name).higher_is_better if metric is None else metric.higher_is_better
    if known is None:
        raise ConfigError(f"metric {name}: no task in mora/evaluate/tasks says whether higher is better")
    return known


@dataclass(frozen=True)
class CellNumbers:
    """The paper's number and ours, in the table's unit.

    Attributes:
        paper: The printed number, if there is one.
        values: One per seed that was run; None if none was. A run that diverged has the value inf if lower is better.
        errors: Standard errors over the evaluation's documents, one per value, if the metric has them.
        seeds: How many seeds the experiment asks for.
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
        """The standard deviation over seeds; None for one seed, or if a run diverged."""
        if self.values is None or len(self.values) < 2 or math.inf in self.values:
            return None
        return statistics.stdev(self.values)
