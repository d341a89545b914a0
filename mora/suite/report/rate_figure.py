"""Loss by learning rate, of every search: whether the order of methods at one rate is that at their own best rates.

`make render` writes `results/figures/rates-<scale>.svg`, `.md` and `.csv`. Searches are those of all experiments; a panel
has the methods of one task, model and rank.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mora.config import RunConfig
from mora.config.run_id import format_lr, run_id
from mora.io import replace_file

from ..cells import CellRuns
from .pictures import SELECTIONS
from .style import MARKERS, PAGE, Look, in_print, looks, saved

ACROSS = 3  # panels
LEGEND = 5  # entries a row
ROW = 0.2  # of a legend, in inches
HEIGHT = 2.1  # of a panel with its title and labels, in inches
MANY = 8  # learning rates, whose labels need a smaller letter
WIDE = 10  # the ratio of losses from which an axis is logarithmic, and full training is out of a panel's reach
TITLE = "Learning rates: the loss at the end of each search, and the order of the methods"
ABOUT = (
    "Each line: a method, through the means over the seeds of its searches; each dot: a seed, where there are two. Ringed: "
    "the rate that the search chose; there is no ring while it is not complete. Losses far above the others lie above the "
    "panel. Only searches are shown, which end before a final run does: the outcomes of final runs are in "
    "[the tables](../tables), and may be in another order."
)
ORDERS = (
    "The orders: lowest loss first, then the others' distance to it in nats; n: the seeds, those that all of the methods "
    "have. At one rate: each rate that all adapters with a complete search were searched at. At own rates: each at the rate "
    "that its search chose; full training, which has a grid of its own, stands only there. Same: at how many of the common "
    "rates the adapters are in the order of their own rates. With one or two seeds nothing is tested here, and no claim is "
    "judged on it."
)
CSV_COLUMNS = ["task", "settings", "model", "r", "method", "lr", "seed", "metric", "loss", "chosen", "run"]


class Point(NamedTuple):
    """A run of a search: its selection metric, inf if it diverged, and its run id."""

    loss: float
    run: str


@dataclass
class Curve:
    """The searches of one method: its points by learning rate and seed, and the rate chosen, if the search is complete."""

    label: str
    method: str
    points: dict[tuple[float, int], Point] = field(default_factory=dict)
    chosen: float | None = None

    @property
    def rates(self) -> list[float]:
        return sorted({lr for lr, _ in self.points})

    @property
    def lowest(self) -> float:
        return min((point.loss for point in self.points.values()), default=math.inf)

    def losses(self, lr: float) -> dict[int, float]:
        """Return the losses at a rate by seed."""
        return {seed: point.loss for (rate, seed), point in self.points.items() if rate == lr}

    def mean(self, lr: float) -> float:
        return statistics.fmean(self.losses(lr).values())


@dataclass
class Panel:
    """The adapters of one task, model and rank, and full training; a curve without points was not searched yet."""

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
        """Where the panel stands among others."""
        return self.config.task.name, self.config.model.name, self.settings, self.config.r or 0

    @property
    def steps(self) -> str:
        """The steps of a search, where its configuration decides them."""
        return f"{self.config.last_step:,}" if self.config.knows_steps else "-"

    @property
    def searched(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if curve.points]

    @property
    def adapters(self) -> list[Curve]:
        return [curve for curve in self.searched if curve.method != "fft"]

    @property
    def lowest(self) -> float:
        return min((curve.lowest for curve in self.adapters), default=math.inf)

    @property
    def common(self) -> list[float]:
        """The rates that all adapters with a complete search share; of all adapters if fewer than two are complete."""
        complete = [curve for curve in self.adapters if curve.chosen is not None]
        searches = complete if len(complete) > 1 else self.adapters
        return sorted(set.intersection(*(set(curve.rates) for curve in searches)))

    @property
    def own(self) -> dict[str, float]:
        """The chosen rate by label, of those that have one."""
        return {curve.label: curve.chosen for curve in self.searched if curve.chosen is not None}

    def order(self, rates: Mapping[str, float]) -> tuple[dict[str, float], int]:
        """Return the losses at these rates, lowest first, over the seeds that all have, and the number of those."""
        losses = {curve.label: curve.losses(rates[curve.label]) for curve in self.searched if curve.label in rates}
        seeds = set.intersection(*map(set, losses.values())) if losses else set()
        means = {label: statistics.fmean(of[seed] for seed in seeds) for label, of in losses.items() if seeds}
        return dict(sorted(means.items(), key=lambda item: item[1])), len(seeds)

    def at(self, lr: float) -> tuple[dict[str, float], int]:
        """Return the adapters' order at one rate."""
        return self.order({curve.label: lr for curve in self.adapters if lr in curve.rates})

    def chosen_at(self, lr: float) -> list[str]:
        """Return the adapters whose search is complete, in their order at one rate."""
        return list(self.order({c.label: lr for c in self.adapters if c.chosen is not None and lr in c.rates})[0])

    @property
    def same(self) -> int:
        """At how many of the common rates the adapters are in the order of their own rates."""
        adapters = {curve.label for curve in self.adapters}
        own = [label for label in self.order(self.own)[0] if label in adapters]
        return sum(self.chosen_at(lr) == own for lr in self.common)

    @property
    def turns(self) -> bool:
        """Whether the order of the adapters is not the same at all common rates."""
        return len({tuple(self.chosen_at(lr)) for lr in self.common}) > 1


def panels(experiments: Iterable[list[list[CellRuns]]]) -> list[Panel]:
    """Gather the searches of resolved experiments: every task, model and rank that has any to be run."""
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


def _add(panel: Panel, cell: CellRuns) -> None:
    """Add a cell's search. Experiments share runs; of two choices that with more results stands."""
    spec, choice = cell.spec, cell.choice
    overrides = (choice.selected or choice.scores[0][0]).overrides
    first = next(r for c, r in zip(spec.search_space, spec.search_runs, strict=True) if c.overrides == overrides)
    label = replace(spec, row=spec.row.model_copy(update={"r": None})).label
    what = first.model_copy(update={"lr": None, "seed": 0}).model_dump_json()
    points = {}
    seeds = spec.at_scale.seeds
    runs = [(c, seeds[0], s) for c, s in choice.scores] + [(c, seeds[1], s) for c, s in choice.second_seed.items()]
    for candidate, seed, score in runs:
        if score is not None and candidate.lr is not None and candidate.overrides == overrides:
            run = first.model_copy(update={"lr": candidate.lr, "seed": seed})
            points[candidate.lr, seed] = Point(score if isinstance(score, float) else math.inf, run_id(run))
    curve = panel.curves.setdefault(what, Curve(label, spec.row.method))
    if choice.selected is not None and (curve.chosen is None or len(points) > len(curve.points)):
        curve.chosen = choice.selected.lr
    curve.points |= points


def drawn(shown: Sequence[Panel]) -> Figure:
    """Draw the panels. Their places are set in inches, since a layout engine's last digits differ from run to run."""
    labels = {curve.label: curve.method for panel in shown for curve in panel.searched}
    look = {name: one._replace(marker=MARKERS[i % len(MARKERS)]) for i, (name, one) in enumerate(looks(labels).items())}
    handles: list[Any] = [Line2D([], [], **one._asdict(), label=name) for name, one in look.items()]
    handles.append(Line2D([], [], ls="", marker="o", ms=8, mfc="none", color="k", label="chosen"))
    legend = ROW * math.ceil(len(handles) / LEGEND)
    down, across = math.ceil(len(shown) / ACROSS), min(ACROSS, len(shown))
    width, height = PAGE * across / ACROSS, HEIGHT * down + legend + 0.05
    figure, axes = plt.subplots(down, across, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - 0.2 / width,
        top=1 - 0.35 / height,
        bottom=(0.5 + legend) / height,
        hspace=0.55,
        wspace=0.42,
    )
    for ax, panel in zip(axes.flat, shown, strict=False):
        _draw(ax, panel, look)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), LEGEND))
    return figure


def _draw(ax: Axes, panel: Panel, look: Mapping[str, Look]) -> None:
    where, rates, losses = "learning rate", set[float](), list[float]()
    for curve in panel.searched:
        if curve.method == "fft" and panel.lowest > WIDE * curve.lowest:
            where += f" ({curve.label} is below: {curve.lowest:.2g})"
            continue
        rates |= set(curve.rates)
        losses += [p.loss for p in curve.points.values() if math.isfinite(p.loss)]
        _line_of(ax, curve, look[curve.label])
    ax.set(xscale="log")
    ax.set_xlabel(where, fontsize=6)
    ax.set_ylabel(SELECTIONS[panel.metric], fontsize=6)
    ax.set_xticks(sorted(rates), [format_lr(lr) for lr in sorted(rates)])
    ax.minorticks_off()
    ax.set_title(f"{panel.what}\n{panel.config.model.name}, {panel.config.rank_text}", fontsize=6)
    if losses:
        low, top = min(losses), _top(losses)
        if top > WIDE * low:
            ax.set(yscale="log", ylim=(low / 1.7, max(losses) * 1.5))
            ax.yaxis.set_major_formatter("{x:g}")
        else:
            ax.set_ylim(low - 0.07 * (top - low), top + 0.07 * (top - low))
    ax.tick_params(labelsize=6)
    ax.tick_params("x", labelsize=6 if len(rates) < MANY else 5)
    ax.grid(alpha=0.3)


def _top(losses: Iterable[float]) -> float:
    """Return the loss at which a panel ends: below the first gap that is twice as wide as all that lies under it."""
    ordered = sorted(losses)
    for below, above in itertools.pairwise(ordered[len(ordered) // 2 :]):
        if above - below > 2 * (below - ordered[0]):
            return below
    return ordered[-1]


def _line_of(ax: Axes, curve: Curve, look: Look) -> None:
    means = [(lr, mean) for lr in curve.rates if math.isfinite(mean := curve.mean(lr))]
    ax.plot([lr for lr, _ in means], [mean for _, mean in means], **look._asdict(), ms=4)
    seeds = [(lr, loss) for lr in curve.rates for loss in curve.losses(lr).values() if len(curve.losses(lr)) > 1]
    ax.plot([lr for lr, _ in seeds], [loss for _, loss in seeds], "o", mfc="w", mec=look.color, mew=0.4, ms=2)
    if curve.chosen is not None and math.isfinite(curve.mean(curve.chosen)):
        ax.plot(curve.chosen, curve.mean(curve.chosen), "o", ms=8, mfc="none", color=look.color)


def _words(order: dict[str, float], n: int, rates: Mapping[str, float] | None = None) -> str:
    """Return `n=2: MoRA, LoRA +0.0013`; with `rates` each with its own behind its name."""
    if not order:
        return "-"
    best, parts = min(order.values()), []
    for label, loss in order.items():
        name = f"{label} ({format_lr(rates[label])})" if rates else label
        beyond = f" {loss - best:+#.3g}" if math.isfinite(loss) else " diverged"
        parts.append(name if loss == best and math.isfinite(loss) else name + beyond)
    return f"n={n}: {'; '.join(parts)}"


def _line(panel: Panel) -> str:
    (own, n), common = panel.order(panel.own), panel.common
    at_each = "<br>".join(f"{format_lr(lr)}, {_words(*panel.at(lr))}" for lr in common) or "none"
    same = f"{panel.same} of {len(common)}"
    return f"| {' | '.join([panel.name, panel.steps, at_each, _words(own, n, panel.own), same, _not_yet(panel)])} |"


def _in_all(shown: Sequence[Panel]) -> str:
    several = [panel for panel in shown if len(panel.common) > 1]
    same, rates = sum(panel.same for panel in shown), sum(len(panel.common) for panel in shown)
    turns = sum(panel.turns for panel in several)
    return (
        f"In all: at {same} of {rates} common rates the adapters are in the order of their own rates. In {turns} of "
        f"{len(several)} panels with more than one common rate their order changes from rate to rate."
    )


def _not_yet(panel: Panel) -> str:
    """Return the methods without a search, and those whose search is not complete."""
    missing = [c.label + (" (not complete)" if c.points else "") for c in panel.curves.values() if c.chosen is None]
    return "; ".join(missing) or "-"


def _markdown(picture: str, scale: str, shown: Sequence[Panel], rest: Sequence[Panel]) -> str:
    lines = [f"# {TITLE}", ""]
    for paragraph in (f"![{TITLE}]({picture})", f"Scale {scale}. {ABOUT}", ORDERS, _in_all(shown)):
        lines += [paragraph, ""]
    lines.append("| panel | steps | order at one rate | order at own rates | same | no search yet |")
    lines += ["|" + "---|" * 6, *map(_line, shown)]
    if rest:
        lines += ["", "Fewer than two adapters were searched here, so there is no panel:", ""]
        lines += ["| task, model, rank | searched | no search yet |", "|---|---|---|"]
        for panel in rest:
            searched = "; ".join(curve.label for curve in panel.searched) or "-"
            lines.append(f"| {panel.name} | {searched} | {_not_yet(panel)} |")
    return "\n".join(lines) + "\n"


def _csv(shown: Sequence[Panel]) -> str:
    """Return one line per run of a panel."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for panel in shown:
        about = [panel.config.task.name, panel.settings, panel.config.model.name, panel.config.r]
        for curve in panel.searched:
            for (lr, seed), point in sorted(curve.points.items()):
                loss = f"{point.loss:.6g}" if math.isfinite(point.loss) else "diverged"
                values = [curve.label, format_lr(lr), seed, panel.metric, loss, lr == curve.chosen, point.run]
                writer.writerow([*about, *values])
    return out.getvalue()


def render(scale: str, experiments: Iterable[list[list[CellRuns]]], folder: Path) -> Path | None:
    """Write `folder/rates-<scale>.svg`, `.md` and `.csv`; return the picture's path, or None if there is no panel."""
    every = panels(experiments)
    shown = [panel for panel in every if len(panel.adapters) > 1]
    if not shown:
        return None
    path = folder / f"rates-{scale}.svg"
    with in_print():
        saved(drawn(shown), path)
    replace_file(path.with_suffix(".md"), _markdown(path.name, scale, shown, [p for p in every if p not in shown]))
    replace_file(path.with_suffix(".csv"), _csv(shown))
    return path
