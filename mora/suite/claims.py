"""The claims ledger: sentences of the paper as predicates over results, each with a verdict from statistics."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from mora.config.data_schema import Section
from mora.config.source import ROOT
from mora.train.log import replace_file

from . import experiment as experiments
from .cells import T95, Cell, CellRuns, resolve_all
from .experiment import Row, Scale
from .figures import MODULES, spectrum_of

CLAIMS = experiments.FOLDER / "claims.yaml"
BENCH = ROOT / "results" / "bench"
PAGE, BEGIN, END = ROOT / "README.md", "<!-- claims:begin -->", "<!-- claims:end -->"
SCALES: tuple[Scale, ...] = ("lite", "paper")

Verdict = Literal["shown", "contradicted", "undecided", "not run"]


class Ratio(Section):
    """Of the median times of two cases of the step benchmark, by their names."""

    shape: str
    slow: str
    fast: str
    at_most: float


class Claim(Section):
    """The form is described at the top of experiments/claims.yaml."""

    says: str
    where: str
    experiment: str | None = None
    columns: list[str] = []
    order: list[list[Row]] = []
    equal: list[list[Row]] = []
    not_worse: list[list[Row]] = []
    margin: float = 0.0
    saturated: float | None = None
    ratio: Ratio | None = None

    def reached(self, cell: Cell | None) -> bool:
        """Whether the cell has come to `saturated`."""
        if self.saturated is None or cell is None or cell.mean is None:
            return False
        return cell.mean >= self.saturated


class Interval(NamedTuple):
    """95 % of a difference, first minus second, turned so that higher is better."""

    low: float
    high: float


def resolved(name: str, scale: Scale) -> list[list[CellRuns]]:
    return resolve_all(experiments.grids(experiments.load(name), scale))


def load() -> list[Claim]:
    return [Claim.model_validate(values) for values in yaml.safe_load(CLAIMS.read_text())]


def verdict(claim: Claim, scale: Scale) -> Verdict:
    """Contradicted where one comparison is; else not run where a cell is missing; else shown where every one is."""
    if claim.ratio is not None:
        return _together(_ratios(claim.ratio))
    return _together([judge(interval, *bounds) for interval, bounds in _comparisons(claim, scale)])


def _together(found: list[Verdict]) -> Verdict:
    if not found or "not run" in found:
        return "contradicted" if "contradicted" in found else "not run"
    return "contradicted" if "contradicted" in found else "undecided" if "undecided" in found else "shown"


def _comparisons(claim: Claim, scale: Scale) -> Iterator[tuple[Interval | None, tuple[float, float]]]:
    """Every comparison of a claim: its interval, None where a cell is missing, and the bounds that it must lie within."""
    if claim.experiment is None:
        return
    rows = resolved(claim.experiment, scale)
    columns = [runs.spec.column.name for runs in rows[0] if runs.spec.column.name in claim.columns]
    higher = experiments.load(claim.experiment).unit == "percent"
    kinds = [
        (claim.order, (0.0, math.inf)),
        (claim.equal, (-claim.margin, claim.margin)),
        (claim.not_worse, (-claim.margin, math.inf)),
    ]
    for chains, bounds in kinds:
        for chain in chains:
            for first, second in pairwise(chain):
                pairs = [[_measured(find(rows, row, column)) for row in (first, second)] for column in columns]
                telling = [pair for pair in pairs if not all(map(claim.reached, pair))]
                for a, b in telling:
                    yield difference(a, b, higher), bounds
                if pairs and not telling:
                    yield Interval(-math.inf, math.inf), bounds


def edges(claim: Claim, scale: Scale) -> list[str]:
    """Of the runs that a claim compares, those whose rate lies at the edge of its grid."""
    if claim.experiment is None:
        return []
    rows = resolved(claim.experiment, scale)
    wanted = [row for chain in (*claim.order, *claim.equal, *claim.not_worse) for row in chain]
    found = [find(rows, row, column) for row in wanted for column in claim.columns]
    return list(dict.fromkeys(runs.spec.label for runs in found if runs and runs.chose_edge))


def judge(found: Interval | None, low: float, high: float) -> Verdict:
    """Whether the difference lies in low..high: surely, surely not, or not known at this number of seeds."""
    if found is None:
        return "not run"
    if found.low > low and found.high <= high:
        return "shown"
    return "contradicted" if found.high < low or found.low > high else "undecided"


def difference(a: Cell | None, b: Cell | None, higher_is_better: bool = True) -> Interval | None:
    """The 95 % interval of a - b; None where one was not run.

    Several seeds each: t at the smaller number of them less one (at least as wide as Welch's). Else the standard errors over
    the evaluation's documents; where there are none either, it is unbounded.
    """
    if a is None or b is None or a.values is None or b.values is None or a.mean is None or b.mean is None:
        return None
    if math.isinf(a.mean) or math.isinf(b.mean):  # diverged: worse than whatever did not
        return Interval(-math.inf, math.inf) if a.mean == b.mean else Interval(b.mean - a.mean, b.mean - a.mean)
    n = min(len(a.values), len(b.values))
    if n > 1:
        spread = math.sqrt(sum(statistics.variance(c.values) / len(c.values) for c in (a, b) if c.values))
        half = T95[min(n - 2, len(T95) - 1)] * spread
    elif a.errors and b.errors:
        half = 1.96 * math.hypot(a.errors[0], b.errors[0])
    else:
        half = math.inf
    center = (a.mean - b.mean) * (1 if higher_is_better else -1)
    return Interval(center - half, center + half)


def find(rows: list[list[CellRuns]], wanted: Row, column: str) -> CellRuns | None:
    """The cell of that method, operator and rank of the paper, in the column of that name."""
    for row in rows:
        for runs in row:
            spec = runs.spec
            rank = spec.row.r and spec.row.r * spec.config.model.rank_scale
            same = (spec.row.method, spec.row.operator, rank) == (wanted.method, wanted.operator, wanted.r)
            if same and spec.column.name == column and spec.exists:
                return runs
    return None


def _measured(runs: CellRuns | None) -> Cell | None:
    if runs is None:
        return None
    if runs.spec.experiment.kind != "spectrum":
        return runs.cell
    values = []
    for config, _ in runs.results:
        found = spectrum_of(config)
        if found is None:
            return None
        values.append(statistics.fmean(found["kinds"][kind][runs.spec.column.metric] for kind in MODULES))
    return Cell(None, tuple(values) or None)


def _ratios(ratio: Ratio) -> list[Verdict]:
    """A verdict a benchmark of that shape: the times' ratio, with the range of the slower case's rounds as its error."""
    found: list[Verdict] = []
    for path in sorted(BENCH.glob("step-*.json")):
        result = json.loads(path.read_text())
        for scenario in result["scenarios"] if result["source"]["dirty"] is False else []:
            times = {case["name"]: case["ms"] for case in scenario["cases"] if case["ms"]}
            if scenario["shape"] != ratio.shape or not {ratio.slow, ratio.fast} <= times.keys():
                continue
            fast = statistics.median(times[ratio.fast])
            slowness = Interval(min(times[ratio.slow]) / fast, max(times[ratio.slow]) / fast)
            found.append(judge(slowness, 0.0, ratio.at_most))
    return found


def table() -> str:
    """The ledger as Markdown. The grids of scale paper are the paper's; ours of scale lite may have been too narrow."""
    lines = ["| the paper says | where | scale lite | scale paper |", "|---|---|---|---|"]
    for claim in load():
        lite, paper = (str(verdict(claim, scale)) for scale in SCALES)
        if lite != "not run" and (narrow := edges(claim, "lite")):
            lite += f"; at the edge of its grid: {', '.join(narrow)}"
        lines.append(f"| {claim.says} | {claim.where} | {'-' if claim.ratio else lite} | {paper} |")
    return "\n".join(lines)


def render(page: Path = PAGE) -> None:
    """Writes the ledger between its two markers. Raises: ValueError where the page has lost them."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page.name}: expected the lines {BEGIN!r} and {END!r} once each")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    replace_file(page, f"{head}{BEGIN}\n{table()}\n{END}{tail}")
