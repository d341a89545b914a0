"""Which setting of a search the final runs take, and the runs that the choice still asks for.

The lowest selection metric at the search's last step wins. Where the experiment `repeats` its searches, a rate at the edge
of its grid adds the next one, and then the best two get a second seed: the lower mean of both wins. Until those runs are
made, the first seed's choice stands, and is marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mora.config import ConfigError, RunConfig
from mora.errors import DamagedFileError
from mora.results import RunResult

from .experiment import Candidate, CellSpec
from .usable import result_of

MOST_ADDED = 2  # rates, beyond an edge

Accepts = Callable[[RunResult | None, str], Any]  # whether a result of that scale takes part in a choice
Score = float | str | None  # of a candidate: its selection metric, "diverged", or None without a result that counts


@dataclass(frozen=True)
class Choice:
    """The outcome of a search.

    Attributes:
        scores: Of every candidate on the first seed, added ones last.
        second_seed: The scores of the best two on the second seed.
        selected: The candidate of the final runs; None while the search is not complete.
        missing: Runs beyond the search that are still to be made.
        on_record: The next rate beyond an edge at which the choice stands, where another experiment's search ran it.
    """

    scores: list[tuple[Candidate, Score]]
    second_seed: dict[Candidate, Score]
    selected: Candidate | None
    missing: list[RunConfig]
    on_record: tuple[tuple[Candidate, Score], ...] = ()

    @property
    def at_edge(self) -> bool:
        """Whether there might be a better rate beyond those searched.

        It is the highest or the lowest of them, and the next one was run nowhere else, or is better.
        """
        if self.selected is None or not _edge(self.selected, [c for c, _ in self.scores]):
            return False
        known = {c: _loss(score) for c, score in self.scores}
        return not any(_loss(score) > known[self.selected] for _, score in self.on_record)

    def reason(self, run: RunConfig) -> str:
        """Return why the run is one of `missing`."""
        assert self.selected is not None
        if self.second_seed:
            return f"the rate {run.lr:g} is one of the best two, so it is tried on seed {run.seed}, too"
        edge = "highest" if (run.lr or 0) > (self.selected.lr or 0) else "lowest"
        return f"the best rate, {self.selected.lr:g}, is the {edge} tried, so {run.lr:g} is added"

    @property
    def reversed(self) -> bool:
        """Whether the second seed alone would have chosen the other of the best two."""
        if None in self.second_seed.values() or len(self.second_seed) < 2:
            return False
        first, second = self.second_seed  # the first seed's order
        return _loss(self.second_seed[second]) < _loss(self.second_seed[first])


def choose(spec: CellSpec, accepts: Accepts) -> Choice:
    """Choose among the runs of a search, and look up what else is on record about a choice at the edge."""
    choice = _chosen(spec, accepts)
    if choice.missing or not choice.at_edge or choice.selected is None or choice.selected.lr is None:
        return choice
    beyond = _edge(choice.selected, [c for c, _ in choice.scores])
    added = Candidate(choice.selected.overrides, next_rate(choice.selected.lr, beyond))
    score = _score(spec, spec.run(added, spec.at_scale.seeds[0], searching=True), accepts)
    return choice if score is None else replace(choice, on_record=((added, score),))


def _chosen(spec: CellSpec, accepts: Accepts) -> Choice:
    """Choose among the runs of a search. A diverged run counts as the worst; if all did, the first is taken."""
    scores = [(c, _score(spec, run, accepts)) for c, run in zip(spec.search_space, spec.search_runs, strict=False)]
    if not scores:
        return Choice([], {}, spec.search_space[0], [])
    if any(score is None for _, score in scores):
        return Choice(scores, {}, None, [])
    if not spec.at_scale.repeats or len(spec.at_scale.seeds) < 2:
        return Choice(scores, {}, _lowest(scores), [])
    more = _widen(spec, scores, accepts)
    if more:
        return Choice(scores, {}, _lowest(scores), more)
    best_two = sorted(scores, key=lambda pair: _loss(pair[1]))[:2]
    runs = {c: spec.run(c, spec.at_scale.seeds[1], searching=True) for c, _ in best_two}
    again = {c: _score(spec, run, accepts) for c, run in runs.items()}
    more = [runs[c] for c, score in again.items() if score is None]
    if more:
        return Choice(scores, again, _lowest(scores), more)
    means: list[tuple[Candidate, Score]] = [(c, _loss(score) + _loss(again[c])) for c, score in best_two]
    return Choice(scores, again, _lowest(means), [])


def _widen(spec: CellSpec, scores: list[tuple[Candidate, Score]], accepts: Accepts) -> list[RunConfig]:
    """Add the scores of rates beyond the edge while the best is there; return the run that is missing for that."""
    for _ in range(MOST_ADDED):
        best = _lowest(scores)
        beyond = _edge(best, [c for c, _ in scores])
        if not beyond or best.lr is None:
            return []
        added = Candidate(best.overrides, next_rate(best.lr, beyond))
        run = spec.run(added, spec.at_scale.seeds[0], searching=True)
        score = _score(spec, run, accepts)
        if score is None:
            return [run]
        scores.append((added, score))
    return []


def next_rate(lr: float, beyond: int) -> float:
    """Return the next of 1, 3, 10, 30 and so on: upwards for `beyond` = 1, downwards for -1."""
    half_decades = round(2 * math.log10(lr)) + beyond
    return float(f"{10 ** (half_decades / 2):.0e}")


def _edge(chosen: Candidate, candidates: list[Candidate]) -> int:
    """Return 1 for the highest rate, -1 for the lowest, 0 within."""
    rates = sorted(c.lr for c in candidates if c.lr is not None and c.overrides == chosen.overrides)
    if chosen.lr is None or not rates:
        return 0
    return 1 if chosen.lr == rates[-1] else -1 if chosen.lr == rates[0] else 0


def _lowest(scores: list[tuple[Candidate, Score]]) -> Candidate:
    losses = [_loss(score) for _, score in scores]
    return scores[losses.index(min(losses))][0]


def _loss(score: Score) -> float:
    return score if isinstance(score, float) else math.inf


def _score(spec: CellSpec, config: RunConfig, accepts: Accepts) -> Score:
    result = result_of(config)
    if result is None or not accepts(result, spec.scale):
        return None
    if result.status != "done":
        return result.status
    step, name = last_step(config, result), spec.experiment.selection
    metric = result.metrics.get(step, {}).get(name)
    if metric is None:
        raise ConfigError(f"{result.run_id}: no metric {name} at step {step}: remove the result to repeat the run")
    return metric.value if metric.finite else "diverged"


def last_step(config: RunConfig, result: RunResult) -> int:
    """Return the step at which the run ended, from its configuration, or from its result if the data decide it."""
    if not config.method.trains:
        return 0
    if config.knows_steps:
        return config.last_step
    if result.last_step is None:
        raise DamagedFileError(f"{result.run_id}: no field last_step: remove the result to repeat the run")
    return result.last_step
