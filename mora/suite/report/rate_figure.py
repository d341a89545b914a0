"""Loss by learning rate, of every search: does the order of methods hold once each has its own best rate?

`make render` writes `results/figures/rates-<scale>.svg`, `.md` and `.csv`. Searches are those of all experiments; a panel
has the methods of one task, model and rank.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mora.config import RunConfig
from mora.config.run_id import format_lr, run_id
from mora.io import replace_file

from ..cells import CellRuns
from ..tables import CAPTIONS
from .pictures import SELECTIONS, bounds
from .style import MARKERS, PAGE, PRINT, UNDATED, looks

ACROSS = 3  # panels
HEIGHT = 2.1  # of a panel with its title and labels, in inches
WIDE = 10  # the ratio of losses from which an axis is logarithmic
TITLE = "Learning rates: the loss at the end of each search, and the order of the methods"
ABOUT = (
    "Each line: a method, through the means over the seeds of its searches; each dot: a seed; ringed: the rate that the "
    "search chose, without a ring while it is not complete. Losses far above the others lie above the panel. A search "
    "ends before a final run does, and only it is shown: what the final runs came to is in [the tables](../tables), and "
    "may be in another order."
)
ORDERS = (
    "The orders: lowest loss first, then the distance to it, in nats; n: the seeds, those that all of the methods have. Left: at "
    "each rate that all adapters were searched at. Right: each at the rate that its own search chose; full training, which has a grid of its "
    "own, stands only there. Same: at how many of the common rates the adapters are in the order of their own rates."
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
        model = CAPTIONS.get(self.config.model.name, self.config.model.name).partition(",")[0]
        return ", ".join(filter(None, [self.config.task.name, self.settings, model, self.config.rank_text]))

    @property
    def searched(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if curve.points]

    @property
    def adapters(self) -> list[Curve]:
        return [curve for curve in self.searched if curve.method != "fft"]

    @property
    def common(self) -> list[float]:
        """The rates at which every adapter was searched."""
        return sorted(set.intersection(*(set(curve.rates) for curve in self.adapters)))

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
        return self.order({curve.label: lr for curve in self.adapters})


def panels(experiments: Iterable[list[list[CellRuns]]]) -> list[Panel]:
    """Gather the searches of resolved experiments: every task, model and rank that has any to be run."""
    found: dict[tuple[str, ...], Panel] = {}
    for rows in experiments:
        cells = {tuple(cell.spec.base): cell for row in rows for cell in row if cell.spec.search_runs}
        for cell in cells.values():
            config = cell.spec.search_runs[0]
            key = (config.task.model_dump_json(), config.model.name, str(config.r))
            settings = [o for o in cell.spec.column.overrides if not o.startswith(("model=", "r="))]
            about = ", ".join(text.rpartition(".")[2] for text in settings)
            _add(found.setdefault(key, Panel(config, about, cell.spec.experiment.selection)), cell)
    full = {key[:2]: panel.curves for key, panel in found.items() if panel.config.r is None}
    for key, panel in found.items():
        panel.curves = full.get(key[:2], {}) | panel.curves
    return [panel for panel in found.values() if panel.config.r is not None]


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
    look = {name: one._replace(marker=MARKERS[i]) for i, (name, one) in enumerate(looks(labels).items())}
    down, across = math.ceil(len(shown) / ACROSS), min(ACROSS, len(shown))
    height = HEIGHT * down + 0.35
    figure, axes = plt.subplots(down, across, figsize=(PAGE * across / ACROSS + 0.2, height), squeeze=False)
    figure.subplots_adjust(
        left=0.55 / figure.get_figwidth(), right=0.99, top=1 - 0.35 / height, bottom=0.72 / height, hspace=0.5, wspace=0.32
    )
    for ax, panel in zip(axes.flat, shown, strict=False):
        _draw(ax, panel, look)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for row in axes:
        row[0].set_ylabel(SELECTIONS[shown[0].metric] if len({p.metric for p in shown}) == 1 else "nats")
    handles: list[Any] = [Line2D([], [], **one._asdict(), label=name) for name, one in look.items()]
    handles.append(Line2D([], [], ls="", marker="o", ms=8, mfc="none", color="k", label="chosen"))
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 5))
    return figure


def _draw(ax: Axes, panel: Panel, look: Mapping[str, Any]) -> None:
    points = [(lr, p.loss) for curve in panel.searched for (lr, _), p in curve.points.items() if math.isfinite(p.loss)]
    for curve in panel.searched:
        one = look[curve.label]
        means = [(lr, mean) for lr in curve.rates if math.isfinite(mean := curve.mean(lr))]
        ax.plot([lr for lr, _ in means], [mean for _, mean in means], **one._asdict(), ms=3.5)
        ax.plot([lr for lr, _ in curve.points], [p.loss for p in curve.points.values()], ".", color=one.color, ms=2)
        if curve.chosen is not None:
            ax.plot(curve.chosen, curve.mean(curve.chosen), "o", ms=8, mfc="none", color=one.color)
    ax.set(xscale="log", xlabel="learning rate")
    ax.set_title(panel.name.replace(f", {panel.config.rank_text}", f"\n{panel.config.rank_text}"), fontsize=7)
    bounds(ax, points)
    losses = [loss for _, loss in points]
    if max(losses) > WIDE * min(losses):
        ax.set(yscale="log", ylim=(min(losses) / 1.5, max(losses) * 1.5))
    ax.tick_params(axis="x", labelsize=6)
    ax.grid(alpha=0.3)


def _words(order: dict[str, float], n: int, rates: Mapping[str, float] = {}) -> str:
    """Return `n=2: MoRA, LoRA +0.0013`; with `rates` each with its own behind its name."""
    if not order:
        return "-"
    best, parts = min(order.values()), []
    for label, loss in order.items():
        name = f"{label} ({format_lr(rates[label])})" if label in rates else label
        beyond = f" {loss - best:+#.3g}" if math.isfinite(loss) else " diverged"
        parts.append(name if loss == best and math.isfinite(loss) else name + beyond)
    return f"n={n}: {'; '.join(parts)}"


def _line(panel: Panel) -> str:
    (own, n), common = panel.order(panel.own), panel.common
    adapters = [label for label in own if label in {curve.label for curve in panel.adapters}]
    same = sum(list(panel.at(lr)[0]) == adapters for lr in common)
    at_each = "<br>".join(f"{format_lr(lr)}, {_words(*panel.at(lr))}" for lr in common) or "none"
    cells = [panel.name, at_each, _words(own, n, panel.own), f"{same} of {len(common)}", _not_yet(panel)]
    return f"| {' | '.join(cells)} |"


def _not_yet(panel: Panel) -> str:
    """Return the methods without a search, and those whose search is not complete."""
    missing = [c.label + (" (not complete)" if c.points else "") for c in panel.curves.values() if c.chosen is None]
    return "; ".join(missing) or "-"


def _markdown(picture: str, scale: str, shown: Sequence[Panel], rest: Sequence[Panel]) -> str:
    lines = [f"# {TITLE}", "", f"![{TITLE}]({picture})", "", f"Scale {scale}. {ABOUT}", "", ORDERS, ""]
    lines.append("| panel | order at one rate | order at own rates | same | no search yet |")
    lines += ["|---|---|---|---|---|", *map(_line, shown)]
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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rates-{scale}.svg"
    with matplotlib.rc_context(PRINT | {"svg.fonttype": "none"}):
        figure = drawn(shown)
        figure.savefig(path, metadata=UNDATED)
    plt.close(figure)
    replace_file(path.with_suffix(".md"), _markdown(path.name, scale, shown, [p for p in every if p not in shown]))
    replace_file(path.with_suffix(".csv"), _csv(shown))
    return path
