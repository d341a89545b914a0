"""The ledger: one verdict per claim, from the committed results. `ledger_text` puts it into words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated

from pydantic import BaseModel, Field

from mora.config.hardware_schema import ScaleName
from mora.config.source import ROOT
from mora.results import checked

from . import verdicts
from .cell_specs import METHOD_NAMES
from .cells import ResolvedCell
from .claims import COMPARED, Claim, Contrast, Ratio, Times, Unit, load
from .contrasts import (
    Measured,
    ResolvedTables,
    both_at_floor,
    documents,
    find,
    hidden_by_floor,
    measure,
    paper_effect,
    rare_counts,
)
from .experiments import Row
from .time_ratios import RatioOfTimes, ratio_of_times
from .verdicts import Estimate, Interval, NearestVerdict, Variance, Verdict

BENCH = ROOT / "results" / "bench"


@dataclass(frozen=True)
class Outcome:
    """What the results say about a contrast.

    `interval` is a 95% interval; for an equality or a closed gap 90%, as in two one-sided tests at 5%. At a second look,
    whose level is 1%, it is 99% or 98%. `columns` are the headings of those of the claim's columns that the scale has,
    and `ranks` the ranks of the cells in them. `sign` is 1 if a higher number is better, else -1.
    """

    verdict: Verdict
    first: str
    second: str
    model: str
    effect: float | None = None
    interval: Interval | None = None
    seeds: int = 0
    planned: int = 0
    documents: int | None = None
    paper: float | None = None
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    ranks: list[str] = field(default_factory=list)
    sign: int = 1
    gap_is_complete: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether all planned seeds are done, also those of the gap that the claim says is closed."""
        return self.seeds >= self.planned and self.gap_is_complete


class Case(BaseModel):
    """A case of the step benchmark. `ms` holds the time of each round; it is empty if the case failed."""

    name: str
    ms: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class Scenario(BaseModel):
    shape: str
    cases: list[Case]


class BenchSource(BaseModel):
    dirty: bool | None


class Bench(BaseModel):
    """Those parts of a file of the step benchmark that a ratio needs."""

    source: BenchSource
    scenarios: list[Scenario]


def judge(claims: Iterable[Claim], scale: ScaleName, resolved: ResolvedTables | None = None) -> list[Outcome]:
    """Return one outcome per claim. The claims of an experiment pool a seed's variance and are corrected together (Holm)."""
    resolved, claims = resolved or ResolvedTables(), list(claims)
    outcomes: dict[int, Outcome] = {}
    for name in dict.fromkeys(claim.experiment for claim in claims):
        table = [claim for claim in claims if claim.experiment == name]
        for claim, outcome in zip(table, _judge_table(table, scale, resolved), strict=True):
            outcomes[id(claim)] = outcome
    return [outcomes[id(claim)] for claim in claims]


def _judge_table(table: list[Claim], scale: ScaleName, resolved: ResolvedTables) -> list[Outcome]:
    if not table[0].experiment:
        return [_judge_ratio(claim.ratio, claim.ratio, scale) for claim in table if claim.ratio]
    contrasts = [resolved.measured(claim, claim.primary, scale) for claim in table]
    estimator = pooled_estimator(table, contrasts)
    estimates = [estimator(claim, measured) for claim, measured in zip(table, contrasts, strict=True)]
    before: list[Verdict] = [
        "not run" if estimate is None else "floor" if hidden_by_floor(claim, measured) else "undecided"
        for claim, measured, estimate in zip(table, contrasts, estimates, strict=True)
    ]
    gaps = gaps_to_close(table, scale, resolved)
    nearest = nearest_verdicts(table, contrasts, before, estimator, gaps)
    decided = verdicts.decide(nearest)
    outcomes = []
    for i, p in enumerate(verdicts.corrected(nearest)):
        verdict = decided[i] if before[i] == "undecided" else before[i]
        outcome = _outcome(table[i], table[i].primary, contrasts[i], estimates[i], verdict, scale, resolved)
        outcome.notes.extend(_p_values(verdict, nearest[i], p))
        outcomes.append(with_gap(outcome, gaps[i]))
    return outcomes


def with_gap(outcome: Outcome, gap: Measured | None) -> Outcome:
    """Return the outcome of a claim with what the gap that it says is closed lacks, and with the doubts about it."""
    if gap is None or outcome.verdict == "not run":
        return outcome
    missing = [] if gap.complete else [f"of the gap {len(gap.seeds)} of {gap.planned} seeds"]
    doubts = [text for text in doubts_about(gap) if text not in outcome.notes]
    return replace(outcome, notes=[*outcome.notes, *missing, *doubts], gap_is_complete=gap.complete)


# Returns a contrast's estimate, or None if no seed has both rows.
Estimator = Callable[[Claim, Measured], Estimate | None]


def pooled_estimator(table: list[Claim], contrasts: list[Measured]) -> Estimator:
    """Return the estimator of the rule: where seeds are few, it takes the variance pooled over these contrasts.

    A contrast with a run in doubt has the variance of its own seeds, and is not in the pool.
    """
    pool = [(claim, m) for claim, m in zip(table, contrasts, strict=True) if not m.doubts]
    shared = {unit: _variance(pool, unit) for unit in {claim.unit for claim in table}}
    return lambda claim, m: _estimate(claim, m, None if m.doubts else shared.get(claim.unit))


def nearest_verdicts(
    table: list[Claim],
    contrasts: list[Measured],
    before: Sequence[Verdict],
    estimator: Estimator,
    gaps: Sequence[Measured | None],
) -> list[NearestVerdict]:
    """Return what each claim of a table is nearest to, before any correction.

    `before` is "undecided" for each claim that is to be judged. A claim that is not judged, now or ever, has p = 1, and
    counts with it in Holm's correction. `gaps` has the gap of each claim that is about one; its seeds must be done, too.
    """
    found = [NearestVerdict(1.0, "undecided")] * len(table)
    for i, (claim, measured) in enumerate(zip(table, contrasts, strict=True)):
        estimate, of_gap = estimator(claim, measured), gaps[i]
        if estimate is None or before[i] != "undecided" or not all_done(measured, of_gap):
            continue
        gap = estimator(claim, of_gap) if of_gap is not None else None
        nearest = verdicts.nearest_verdict(claim.test, estimate, claim.margin, gap)
        found[i] = _exact(claim, measured, nearest)._replace(level=claim.level(measured.planned))
    return found


def all_done(measured: Measured, gap: Measured | None) -> bool:
    """Return whether every planned seed of a claim's contrast was run, and of its gap if it is about one."""
    return measured.complete and (gap is None or gap.complete)


def _p_values(verdict: Verdict, nearest: NearestVerdict, p: float) -> list[str]:
    """Return a note with the p-values if the verdict rests on the correction, or on a level other than the usual one."""
    level = "" if nearest.level == verdicts.ALPHA else f" at level {nearest.level:g}"
    if verdict == "undecided" and nearest.p <= nearest.level:
        before = f"{nearest.verdict} before Holm's correction (p = {p_text(nearest.p)})"
        return [f"{before}, undecided after it (p = {p_text(p)}{level})"]
    return [f"p = {p_text(p)}{level}"] if level and verdict == nearest.verdict != "undecided" else []


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.02 else f"{p:.4f}" if p >= 0.01 else f"{p:.2g}"  # near the level 0.01, one digit more


def gaps_to_close(table: list[Claim], scale: ScaleName, resolved: ResolvedTables) -> list[Measured | None]:
    """Return, for each claim, the gap that it says is closed; None for claims that are not about a gap."""
    return [
        resolved.measured(claim, Contrast(first=claim.second, second=claim.gap), scale)
        if claim.gap is not None and claim.second is not None
        else None
        for claim in table
    ]


def _variance(pool: list[tuple[Claim, Measured]], unit: Unit) -> Variance | None:
    return verdicts.pooled([verdicts.variance(m.differences) for claim, m in pool if claim.unit == unit])


def _estimate(claim: Claim, measured: Measured, of_table: Variance | None) -> Estimate | None:
    """Estimate the difference; None if no seed has both rows."""
    if not measured.seeds:
        return None
    return verdicts.estimate(measured.differences, of_table, measured.document_se, claim.plan.seed_sd)


def secondary_outcomes(claim: Claim, scale: ScaleName, resolved: ResolvedTables) -> list[Outcome]:
    """Return the contrasts shown beside the primary one, each with the variance of its own seeds and without a verdict."""
    if claim.ratio is not None:
        beside = [_judge_ratio(claim.ratio, times, scale) for times in claim.ratio.also]
        return [o if o.verdict == "not run" else replace(o, verdict="undecided") for o in beside]
    outcomes = []
    for contrast in claim.also:
        measured = resolved.measured(claim, contrast, scale)
        estimate = _estimate(claim, measured, None)
        verdict: Verdict = "not run" if estimate is None else "undecided"
        outcomes.append(_outcome(claim, contrast, measured, estimate, verdict, scale, resolved))
    return outcomes


def _exact(claim: Claim, measured: Measured, nearest: NearestVerdict) -> NearestVerdict:
    """Require Fisher's exact test, too, for an order of shares with few right or few wrong answers."""
    counts = rare_counts(claim, measured)
    if counts is None or claim.test != "order":
        return nearest
    return NearestVerdict(max(nearest.p, verdicts.exact(*counts)[1]), nearest.verdict)


def _outcome(
    claim: Claim,
    contrast: Contrast,
    measured: Measured,
    estimate: Estimate | None,
    verdict: Verdict,
    scale: ScaleName,
    resolved: ResolvedTables,
) -> Outcome:
    rows, sides = resolved.rows(claim.experiment, scale), measured.sides
    effect, interval = _effect_and_interval(claim, measured, estimate)
    compared = [cell.spec for cell in sides[0].cells] if sides else []
    paper = paper_effect(claim, contrast, [spec.column for spec in compared], resolved)
    notes = _notes(claim, measured, verdict, estimate)
    if verdict not in ("not run", "floor"):
        notes += _columns_at_floor(claim, contrast, rows, [spec.column.name for spec in compared])
    if verdict == "undecided" and measured.complete and paper is not None and interval is not None:
        notes += [] if interval.low <= paper <= interval.high else ["the paper's effect is outside the interval"]
    return Outcome(
        verdict,
        first=_name(rows, contrast.first),
        second=_name(rows, contrast.second),
        model=", ".join(dict.fromkeys(cell.spec.config.model.name for row in rows for cell in row)),
        effect=effect,
        interval=interval,
        seeds=len(measured.seeds),
        planned=measured.planned,
        documents=documents(sides),
        paper=paper,
        notes=notes,
        columns=[spec.heading for spec in compared],
        ranks=list(dict.fromkeys(text for cell in measured.cells if (text := cell.spec.config.rank_text))),
        sign=measured.sign,
    )


def _effect_and_interval(
    claim: Claim, measured: Measured, estimate: Estimate | None
) -> tuple[float | None, Interval | None]:
    """Return both in the metric's own direction. If few answers are right or wrong, the interval covers the exact one."""
    if estimate is None:
        return None, None
    level, sign = claim.level(measured.planned), measured.sign
    low, high = estimate.interval(1 - level if claim.test == "order" else 1 - 2 * level)
    if claim.test == "order" and (counts := rare_counts(claim, measured)) is not None:
        exact = verdicts.exact(*counts)[0]
        low, high = min(low, 100 * sign * exact.low), max(high, 100 * sign * exact.high)
    return sign * estimate.effect, Interval(*sorted((sign * low, sign * high)))


def _columns_at_floor(
    claim: Claim, contrast: Contrast, rows: list[list[ResolvedCell]], columns: list[str]
) -> list[str]:
    """Return a note that names those columns of a mean in which neither row stands above the floor."""
    if len(columns) < 2:
        return []
    each = {name: measure(claim, contrast.model_copy(update={"columns": [name]}), rows) for name in columns}
    if not (low := [name for name, measured in each.items() if both_at_floor(measured)]):
        return []
    share = "half" if 2 * len(low) == len(columns) else f"{len(low)} of {len(columns)} columns"
    are = "is at its floor" if len(low) == 1 else "are at their floor"
    return [f"{' and '.join(low)}, {share} of this mean, {are}"]


def _name(rows: list[list[ResolvedCell]], wanted: Row) -> str:
    for row in rows:
        if row and find([row], wanted, row[0].spec.column.name):
            return row[0].spec.label
    return METHOD_NAMES[wanted.method]


def _notes(claim: Claim, measured: Measured, verdict: Verdict, estimate: Estimate | None) -> list[str]:
    notes, cells = [], measured.cells
    if measured.seeds and not measured.complete:
        waiting = "" if verdict == "floor" else ", not judged until all are done"
        notes.append(f"{len(measured.seeds)} of {measured.planned} seeds{waiting}")
    if estimate is not None and estimate.is_assumed:
        why = "one seed: its" if len(measured.seeds) == 1 else "the seeds do not differ: their"
        notes.append(f"{why} sd of {claim.plan.seed_sd:g} is assumed")
    if measured.paired_se is not None:
        notes.append("paired over documents")
    if measured.seeds and not all(map(math.isfinite, measured.differences)):
        notes.append("a run diverged")
    edges = dict.fromkeys(cell.spec.label for cell in cells if cell.choice.at_edge)
    if measured.seeds and edges and cells[0].spec.scale != "paper":  # the grids of scale paper are the paper's
        notes.append(f"at the edge of its grid: {', '.join(edges)}")
    if turned := dict.fromkeys(cell.spec.label for cell in cells if cell.choice.reversed):
        notes.append(f"a second seed would choose another learning rate: {', '.join(turned)}")
    return [*notes, *doubts_about(measured)]


def doubts_about(measured: Measured) -> list[str]:
    return [f"in doubt: {name} ({', '.join(why)})" for name, why in measured.doubts.items()]


def _judge_ratio(ratio: Ratio, times: Times, scale: ScaleName) -> Outcome:
    """Compare two times at scale paper, round by round. The outcome shows the measurement least favourable to the claim."""
    measured: list[RatioOfTimes] = []
    for path in sorted(BENCH.glob("step-*.json")) if scale == "paper" else []:
        result = checked(path, Bench.model_validate, "`make bench` repeats the measurement")
        for scenario in result.scenarios if result.source.dirty is False else []:
            ms = {case.name: case.ms for case in scenario.cases if case.ms}
            if scenario.shape == ratio.shape and {times.slow, times.fast} <= ms.keys():
                measured.append(ratio_of_times(ms[times.slow], ms[times.fast]))
    if not measured:
        return Outcome("not run", times.slow, times.fast, "", paper=ratio.paper)
    above = [one for one in measured if one.interval.low > ratio.at_most]
    effect, interval = max(above or measured, key=lambda one: one.interval.high)
    verdict: Verdict = "contradicted" if above else "shown" if interval.high <= ratio.at_most else "undecided"
    notes = ["of this suite's kernels, random weights"]
    about = (times.slow, times.fast, ratio.shape)
    return Outcome(verdict, *about, effect, interval, paper=ratio.paper, notes=notes, sign=-1)


@lru_cache(maxsize=1)
def all_outcomes(resolved: ResolvedTables) -> list[tuple[Claim, ScaleName, Outcome]]:
    """Return every claim at every scale at which it was run; a claim that was run at none, once, as not run."""
    claims = load().claims
    by_scale = {scale: judge(claims, scale, resolved) for scale in COMPARED}
    lines: list[tuple[Claim, ScaleName, Outcome]] = []
    for i, claim in enumerate(claims):
        there = [(claim, scale, by_scale[scale][i]) for scale in COMPARED if by_scale[scale][i].verdict != "not run"]
        lines += there or [(claim, "paper", by_scale["paper"][i])]
    return lines
