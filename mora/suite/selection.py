"""Which setting of a search the final runs take, and the runs that the choice still asks for.

The candidate with the lowest selection metric at the last step of the search wins. If the experiment `repeats` its searches
and the best rate is at the edge of the grid, the next rate is added. Then the best two get a second seed, and the lower mean
over both seeds wins. Until those runs are made, the choice of the first seed stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mora.config import ConfigError, RunConfig
from mora.errors import DamagedFileError
from mora.results import RunResult

from .cell_specs import Candidate, CellSpec
from .usable import result_of

MOST_ADDED = 2  # the most rates added beyond an edge

Accepts = Callable[[RunResult | None, str], Any]  # returns whether a result may take part in a choice at that scale
Score = float | str | None  # a candidate's selection metric; "diverged"; None without a result that counts


@dataclass(frozen=True)
class Choice:
    """The outcome of a search.

    Attributes:
        scores: The scores of all candidates on the first seed. Added candidates are last.
        second_seed: The scores of the best two on the second seed.
        selected: The candidate that the final runs take; None while the search is not complete.
        missing: The runs beyond the search that are still to be made.
        on_record: If the choice is at an edge, the next rate beyond it with its score, if another search has run it.
    """

    scores: list[tuple[Candidate, Score]]
    second_seed: dict[Candidate, Score]
    selected: Candidate | None
    missing: list[RunConfig]
    on_record: tuple[tuple[Candidate, Score], ...] = ()

    @property
    def at_edge(self) -> bool:
        """Whether there might be a better rate beyond those searched.

        That is so if the chosen rate is the highest or the lowest of them, unless the next one was run elsewhere and is
        worse.
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
        first, second = self.second_seed  # in the first seed's order
        return _loss(self.second_seed[second]) < _loss(self.second_seed[first])


def choose(spec: CellSpec, accepts: Accepts) -> Choice:
    """Choose among the runs of a search. For a choice at the edge, look up whether the next rate is on record."""
    choice = _chosen(spec, accepts)
    if choice.missing or not choice.at_edge or choice.selected is None or choice.selected.lr is None:
        return choice
    beyond = _edge(choice.selected, [c for c, _ in choice.scores])
    added = Candidate(choice.selected.overrides, next_rate(choice.selected.lr, beyond))
    score = _score(spec, spec.run(added, spec.at_scale.seeds[0], searching=True), accepts)
    return choice if score is None else replace(choice, on_record=((added, score),))


def _chosen(spec: CellSpec, accepts: Accepts) -> Choice:
    """Choose among the runs of a search. A run that diverged is worse than any other; if all did, the first is chosen."""
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
    """While the best rate is at the edge, add the score of the next; return the run that is missing for that, if any."""
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
    """Return the next rate of the series 1, 3, 10, 30 and so on: upwards for `beyond` = 1, downwards for -1."""
    half_decades = round(2 * math.log10(lr)) + beyond
    return float(f"{10 ** (half_decades / 2):.0e}")


def _edge(chosen: Candidate, candidates: list[Candidate]) -> int:
    """Return 1 if the chosen rate is the highest, -1 if it is the lowest, and 0 otherwise."""
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
    measured = result.metrics.get(step, {})
    metric = measured.get(name)
    if metric is None:
        raise ConfigError(
            f"{result.run_id}: no metric {name} at step {step}, which selects; there are {', '.join(sorted(measured))}: "
            "correct the experiment's selection, or, if the run would measure it now, remove the result to repeat the run"
        )
    return metric.value if metric.finite else "diverged"


def last_step(config: RunConfig, result: RunResult) -> int:
    """Return the run's last step: by its configuration, or by its result if the data decide the number of steps."""
    if not config.method.trains:
        return 0
    if config.knows_steps:
        return config.last_step
    if result.last_step is None:
        raise DamagedFileError(f"{result.run_id}: no field last_step: remove the result to repeat the run")
    return result.last_step
