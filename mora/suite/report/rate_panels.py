"""The searches of learning rates, gathered by task, model and rank: their curves, and the orders of their methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mora.config import RunConfig
from mora.config.run_id import run_id
from mora.planner.counts import operator_of

from ..cells import ResolvedCell

WIDE = 10  # the ratio of losses above which an axis is logarithmic, and a curve of full training is left out


class Point(NamedTuple):
    """A run of a search: its selection metric, inf if it diverged, and its run id."""

    loss: float
    run: str


@dataclass
class Curve:
    """The searches of one method: its points by learning rate and seed, and the chosen rate once the search is complete.

    `usual` says whether MoRA's operator here is the one it has if none is named.
    """

    label: str
    method: str
    points: dict[tuple[float, int], Point] = field(default_factory=dict)
    chosen: float | None = None
    usual: bool = False

    @property
    def rates(self) -> list[float]:
        return sorted({lr for lr, _ in self.points})

    @property
    def lowest(self) -> float:
        return min((point.loss for point in self.points.values()), default=math.inf)

    def losses(self, lr: float) -> dict[int, float]:
        """Return, by seed, the losses at a rate."""
        return {seed: point.loss for (rate, seed), point in self.points.items() if rate == lr}

    def mean(self, lr: float) -> float:
        return statistics.fmean(self.losses(lr).values())


@dataclass
class Panel:
    """The adapters of one task, model and rank, and full training. A curve without points has not been searched yet."""

    config: RunConfig
    settings: str
    metric: str
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.what}, {self.config.model.name}, {self.config.rank_text}"

    @property
    def what(self) -> str:
        """The task and its settings."""
        return ", ".join(filter(None, [self.config.task.name, self.settings]))

    @property
    def place(self) -> tuple[str, str, str, int]:
        """The key by which panels are sorted."""
        return self.config.task.name, self.config.model.name, self.settings, self.config.r or 0

    @property
    def steps(self) -> str:
        """The number of steps of a search; `-` if its configuration does not decide it."""
        return f"{self.config.last_step:,}" if self.config.knows_steps else "-"

    @property
    def searched(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if curve.points]

    @property
    def adapters(self) -> list[Curve]:
        return [curve for curve in self.searched if curve.method != "fft"]

    @property
    def operators(self) -> list[Curve]:
        """MoRA's operators, if several were searched."""
        searched = [curve for curve in self.searched if curve.method == "mora"]
        return searched if len(searched) > 1 else []

    @property
    def methods(self) -> list[Curve]:
        """One curve per method. Of several MoRA operators it is the usual one's."""
        return [curve for curve in self.searched if curve.usual or curve not in self.operators]

    @property
    def lowest(self) -> float:
        return min((curve.lowest for curve in self.adapters), default=math.inf)

    @property
    def far_below(self) -> list[Curve]:
        """The curves of full training whose loss is so low that it would flatten the panel."""
        return [curve for curve in self.searched if curve.method == "fft" and self.lowest > WIDE * curve.lowest]

    @property
    def common(self) -> list[float]:
        """The rates that all adapters with a complete search share; if fewer than two have one, that all adapters share."""
        complete = [curve for curve in self.adapters if curve.chosen is not None]
        searches = complete if len(complete) > 1 else self.adapters
        return sorted(set.intersection(*(set(curve.rates) for curve in searches)))

    @property
    def own(self) -> dict[str, float]:
        """The chosen rates by label."""
        return {curve.label: curve.chosen for curve in self.searched if curve.chosen is not None}

    def order(self, rates: Mapping[str, float]) -> tuple[dict[str, float], int]:
        """Return the mean losses at these rates, lowest first, over the seeds that all have, and the number of seeds."""
        losses = {curve.label: curve.losses(rates[curve.label]) for curve in self.searched if curve.label in rates}
        seeds = set.intersection(*map(set, losses.values())) if losses else set()
        means = {label: statistics.fmean(of[seed] for seed in seeds) for label, of in losses.items() if seeds}
        return dict(sorted(means.items(), key=lambda item: item[1])), len(seeds)

    def at(self, lr: float) -> tuple[dict[str, float], int]:
        """Return the adapters' order at one rate."""
        return self.order({curve.label: lr for curve in self.adapters if lr in curve.rates})

    def chosen_at(self, lr: float) -> list[str]:
        """Return those adapters whose search is complete, in their order at one rate."""
        return list(self.order({c.label: lr for c in self.adapters if c.chosen is not None and lr in c.rates})[0])

    @property
    def same(self) -> int:
        """The number of common rates at which the adapters have the same order as at their own rates."""
        adapters = {curve.label for curve in self.adapters}
        own = [label for label in self.order(self.own)[0] if label in adapters]
        return sum(self.chosen_at(lr) == own for lr in self.common)

    @property
    def turns(self) -> bool:
        """Whether the order of the adapters differs between common rates."""
        return len({tuple(self.chosen_at(lr)) for lr in self.common}) > 1


def panels(experiments: Iterable[list[list[ResolvedCell]]]) -> list[Panel]:
    """Gather the searches of resolved experiments into one panel per task, model and rank."""
    found: dict[tuple[str, str, str], Panel] = {}
    for rows in experiments:
        searched = (cell.of_search for row in rows for cell in row if cell.spec.search_runs)
        cells = {tuple(cell.spec.base): cell for cell in searched}
        for cell in cells.values():
            config = cell.spec.search_runs[0]
            key = (config.task.model_dump_json(), config.model.name, str(config.r))
            settings = [o for o in cell.spec.column.overrides if not o.startswith(("model=", "r="))]
            about = ", ".join(text.rpartition(".")[2] for text in settings)
            _add(found.setdefault(key, Panel(config, about, cell.spec.experiment.selection)), cell)
    full = {key[:2]: panel.curves for key, panel in found.items() if panel.config.r is None}
    for key, panel in found.items():
        panel.curves = full.get(key[:2], {}) | panel.curves
    return sorted((panel for panel in found.values() if panel.config.r is not None), key=lambda panel: panel.place)


def _add(panel: Panel, cell: ResolvedCell) -> None:
    """Add a cell's search to the panel. Experiments may share its runs; of two choices, the one with more results stands."""
    spec, choice = cell.spec, cell.choice
    overrides = (choice.selected or choice.scores[0][0]).overrides
    first = next(r for c, r in zip(spec.search_space, spec.search_runs, strict=True) if c.overrides == overrides)
    operator = operator_of(first) if spec.row.method == "mora" else spec.row.operator
    label = replace(spec, row=spec.row.model_copy(update={"r": None, "operator": operator})).label
    what = first.model_copy(update={"lr": None, "seed": 0}).model_dump_json()
    points = {}
    seeds = spec.at_scale.seeds
    runs = [(c, seeds[0], s) for c, s in choice.scores] + [(c, seeds[1], s) for c, s in choice.second_seed.items()]
    for candidate, seed, score in runs:
        if score is not None and candidate.lr is not None and candidate.overrides == overrides:
            run = first.model_copy(update={"lr": candidate.lr, "seed": seed})
            points[candidate.lr, seed] = Point(score if isinstance(score, float) else math.inf, run_id(run))
    curve = panel.curves.setdefault(what, Curve(label, spec.row.method))
    curve.usual = curve.usual or spec.row.operator in (None, spec.column.auto)
    if choice.selected is not None and (curve.chosen is None or len(points) > len(curve.points)):
        curve.chosen = choice.selected.lr
    curve.points |= points
