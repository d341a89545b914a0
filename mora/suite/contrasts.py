"""A contrast's result: its differences by seed, their errors, and whether a floor hides it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mora.config.hardware_schema import ScaleName
from mora.evaluate.metrics import documents_of
from mora.results import MODULES

from . import experiments, pairing, verdicts
from .cell_specs import CellSpec, cell_specs
from .cells import ResolvedCell, above_floor, at_floor, higher_is_better, resolve, resolve_all
from .claims import Claim, Contrast, Unit, is_cell
from .doubts import doubted
from .experiments import Column, Row
from .figures import spectrum_of


class ResolvedTables:
    """The resolved tables that claims are judged on, and the contrasts measured on them; each is computed once."""

    def __init__(self, resolved: dict[tuple[str, ScaleName], list[list[ResolvedCell]]] | None = None) -> None:
        self._rows = dict(resolved or {})
        self._measured: dict[tuple[str, str, ScaleName], Measured] = {}

    def rows(self, name: str, scale: ScaleName) -> list[list[ResolvedCell]]:
        if (name, scale) not in self._rows:
            self._rows[name, scale] = resolve_all(cell_specs(experiments.load(name), scale))
        return self._rows[name, scale]

    def measured(self, claim: Claim, contrast: Contrast, scale: ScaleName) -> Measured:
        """Return a contrast of the claim. It is kept, with what it has computed, such as its error over documents."""
        key = (claim.model_dump_json(), contrast.model_dump_json(), scale)
        if key not in self._measured:
            self._measured[key] = measure(claim, contrast, self.rows(claim.experiment, scale))
        return self._measured[key]


@dataclass(frozen=True)
class Side:
    """One row of a contrast: by seed, its mean over the columns, and the error of that mean over the documents."""

    values: dict[int, float]
    errors: dict[int, float]
    cells: list[ResolvedCell]


@dataclass(frozen=True)
class Measured:
    """A contrast at a scale. A row that was not run is None.

    The sign of a difference is such that higher is better; multiplying by `sign` restores the metric's own direction.
    """

    first: Side | None
    second: Side | None
    sign: int
    unit: Unit

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.first, self.second) if side is not None]

    @property
    def cells(self) -> list[ResolvedCell]:
        return [cell for side in self.sides for cell in side.cells]

    @cached_property
    def doubts(self) -> dict[str, list[str]]:
        """The reasons for doubt of each doubted run of either row."""
        return doubted(self.cells)

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that both rows have."""
        if self.first is None or self.second is None:
            return []
        return [seed for seed in self.first.values if seed in self.second.values]

    @cached_property
    def differences(self) -> list[float]:
        first, second = (side.values if side else {} for side in (self.first, self.second))
        return [self.sign * (first[seed] - second[seed]) for seed in self.seeds]

    @property
    def complete(self) -> bool:
        """Whether every planned seed was run."""
        return 0 < self.planned <= len(self.seeds)

    @property
    def planned(self) -> int:
        return max((len(cell.spec.seeds) for cell in self.cells), default=0)

    @cached_property
    def paired_se(self) -> float | None:
        """The standard error over the documents that both rows scored, if their scores were saved."""
        if self.first is None or self.second is None or not self.seeds:
            return None
        return pairing.error(self.first.cells, self.second.cells, self.seeds, self.unit)

    @property
    def document_se(self) -> float | None:
        """The paired error; else, if there is one seed, that of two rows which scored different documents."""
        if self.paired_se is not None:
            return self.paired_se
        if self.first is None or self.second is None or len(self.seeds) != 1:
            return None
        (seed,) = self.seeds
        errors = [side.errors.get(seed) for side in (self.first, self.second)]
        return math.hypot(*(e for e in errors if e is not None)) if None not in errors else None


def measure(claim: Claim, contrast: Contrast, rows: list[list[ResolvedCell]]) -> Measured:
    there = {cell.spec.column.name: cell.spec.column for row in rows for cell in row}
    columns = [name for name in contrast.columns or claim.columns if name in there]
    first, second = (_side(claim, rows, row, columns) for row in (contrast.first, contrast.second))
    higher = claim.unit == "values" or not columns or higher_is_better(there[columns[0]].metric)
    return Measured(first, second, 1 if higher else -1, claim.unit)


def _side(claim: Claim, rows: list[list[ResolvedCell]], row: Row, columns: list[str]) -> Side | None:
    cells = [cell for name in columns if (cell := find(rows, row, name)) is not None]
    if not columns or len(cells) < len(columns):
        return None
    measured = [_by_seed(cell, claim.unit) for cell in cells]
    seeds = [seed for seed in measured[0] if all(seed in m for m in measured)]
    values = {seed: statistics.fmean(m[seed][0] for m in measured) for seed in seeds}
    errors = {}
    for seed in seeds:
        known = [error for m in measured if (error := m[seed][1]) is not None]
        if len(known) == len(cells):
            errors[seed] = math.hypot(*known) / len(cells)
    return Side(values, errors, cells)


def _by_seed(cell: ResolvedCell, unit: Unit) -> dict[int, tuple[float, float | None]]:
    """Return, by seed, the value and its standard error over documents, in the claim's unit."""
    if unit == "values":
        spectra = {config.seed: spectrum_of(config) for config, _ in cell.results}
        name = cell.spec.column.metric
        return {s: (statistics.fmean(f.kinds[k][name] for k in MODULES), None) for s, f in spectra.items() if f}
    values: dict[int, tuple[float, float | None]] = {}
    for config, result in cell.results:
        if (measured := cell.measured(config, result)) is None:
            continue
        value, error = measured
        if unit == "nats":
            values[config.seed] = (math.log(value), None if error is None else error / value)
            continue
        metric = cell.metrics(config, result).get(cell.spec.column.metric)
        if error is not None and metric is not None and metric.documents:
            error = max(error, 100 * verdicts.share_error(metric.value, metric.documents))
        values[config.seed] = (value, error)
    return values


def find(rows: list[list[ResolvedCell]], wanted: Row, column: str) -> ResolvedCell | None:
    """Return the cell in the named column whose row has no settings and `wanted`'s method, operator and paper's rank."""
    return next((cell for row in rows for cell in row if is_cell(cell.spec, wanted, column)), None)


# The share of questions that a model must answer in the requested form; below it, its score does not show what it knows.
ANSWERS = 0.1


def hidden_by_floor(claim: Claim, measured: Measured) -> bool:
    """Return whether a floor, the score of a model that knows nothing, hides the contrast.

    It does if both rows are at the floor, if the better row stands less far above it than the claim's margin or planned
    effect, or if the untuned model is at the floor although it answers at least a tenth of the questions in the requested
    form.
    """
    if measured.first is None or measured.second is None:
        return False
    sides = (measured.first.cells, measured.second.cells)
    if both_at_floor(measured) or not has_room(sides, claim.margin or claim.plan.effect):
        return True
    before = [resolve(untuned(cell.spec)) for cell in measured.first.cells]
    return at_floor(before) and all(map(_answers, before))


def both_at_floor(measured: Measured) -> bool:
    """Return whether neither row scores more than a model that knows nothing."""
    sides = (measured.first, measured.second)
    return all(side is not None and at_floor(side.cells) for side in sides)


def has_room(sides: Iterable[list[ResolvedCell]], points: float) -> bool:
    """Return whether the better row is at least that many points above the floor; True if a metric has no floor."""
    heights = [above_floor(cells) for cells in sides]
    return any(height is None or 100 * height >= points for height in heights)


def _answers(cell: ResolvedCell) -> bool:
    name = f"{cell.spec.column.scored_task}.answered"
    shares = [metrics[name].value for c, r in cell.results if name in (metrics := cell.metrics(c, r))]
    return not shares or statistics.fmean(shares) >= ANSWERS


def untuned(spec: CellSpec) -> CellSpec:
    """Return the cell of the untuned model in the same column."""
    free = [text for text in spec.column.overrides if not text.startswith(("r=", "method"))]
    return CellSpec(
        spec.experiment,
        spec.scale,
        spec.at_scale,
        Row(method="none"),
        spec.column.model_copy(update={"overrides": free}),
    )


def rare_counts(claim: Claim, measured: Measured) -> tuple[int, int, int, int] | None:
    """Return each row's number of right answers and of all answers over the shared seeds.

    None if neither row has few right or few wrong answers, or if they cannot be counted.
    """
    if claim.unit != "points" or measured.first is None or measured.second is None:
        return None
    counts: list[int] = []
    for side in (measured.first, measured.second):
        if len(side.cells) != 1:
            return None
        (cell,) = side.cells
        known = [cell.metrics(c, r).get(cell.spec.column.metric) for c, r in cell.results if c.seed in measured.seeds]
        if not all(m is not None and m.finite and m.documents for m in known):
            return None
        counts += [sum(round(m.value * m.documents) for m in known if m and m.documents)]
        counts += [sum(m.documents for m in known if m and m.documents)]
    first, n_first, second, n_second = counts
    rare = min(first, n_first - first, second, n_second - second) < verdicts.RARE
    return (first, n_first, second, n_second) if rare else None


def documents(sides: list[Side]) -> int | None:
    """Return how many documents one row scored: of each set, the most of any seed; a set of two columns counts once."""
    if not sides:
        return None
    counts: dict[str, int] = {}
    for cell in sides[0].cells:
        known = [cell.metrics(config, result).get(cell.spec.column.metric) for config, result in cell.results]
        name = documents_of(cell.spec.column.scored_task)
        counts[name] = max([counts.get(name, 0), *(metric.documents or 0 for metric in known if metric)])
    return sum(counts.values()) or None


def paper_effect(
    claim: Claim, contrast: Contrast, compared: Sequence[Column], resolved: ResolvedTables
) -> float | None:
    """Return the paper's effect, first minus second, in the claim's unit.

    It is the mean over those of the paper's columns that the claim names and that a compared column stands for; if no
    column is compared, over all that the claim names.
    """
    rows = resolved.rows(claim.experiment, "paper")
    names = [cell.spec.column.name for cell in (rows[0] if rows else [])]
    named = contrast.columns or claim.columns
    meant = [name for column in compared for name in column.stands_for or [column.name] if name in named] or named
    differences = []
    for column in (name for name in meant if name in names):
        cells = [find(rows, row, column) for row in (contrast.first, contrast.second)]
        values = [cell.spec.paper_value for cell in cells if cell is not None]
        if len(values) < 2 or values[0] is None or values[1] is None:
            return None
        a, b = (math.log(v) if claim.unit == "nats" else v for v in values if v is not None)
        differences.append(a - b)
    return statistics.fmean(differences) if differences else None
