"""Loss by learning rate, for every search, and whether methods have the same order at one rate as at their own best rates.

`make render` writes `results/figures/rates-<scale>.svg`, `.md` and `.csv`. The searches are those of all experiments. A
panel has the methods of one task, model and rank.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETUP

from mora.config.run_id import format_lr
from mora.io import replace_file

from ..cells import ResolvedCell
from .pictures import SELECTIONS
from .rate_panels import WIDE, Curve, Panel, panels
from .style import MARKERS, PAGE, Look, in_print, looks, saved

ACROSS = 2  # panels side by side
LEGEND = 5  # entries per row of the legend
ROW = 0.2  # height of a legend's row, in inches
HEIGHT = 2.3  # height of a panel with its title and labels, in inches
MANY = 8  # from this many learning rates on, their labels are smaller
NEAR = 0.06  # a panel reaches at least this many nats above the best loss
BEYOND = 1.5  # or, if that is more, this factor times the distance between the best loss and the worst choice
OPEN: dict[str, Any] = {"mfc": "none", "mew": 0.8, "ms": 4.5}  # so that all marks show where methods agree
SHADES = {"sharing": "#7F2704", "decouple": "#FD8D3C", "truncation": "#969696"}  # variants of MoRA's colour
SEED: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "w", "mew": 0.4, "ms": 2}
TITLE = "Learning rates: the loss at the end of each search, and the order of the methods"
ABOUT = (
    "Each line: a method, through the means over the seeds of its searches; small open dots: the single seeds, where "
    "there are two. Ringed: the rate that the search chose; there is no ring while it is not complete. A caret at the "
    "upper edge: a run that diverged, or a loss above the panel, which ends where the choices can still be told "
    "apart. Where several of MoRA's operators were searched, they have a panel of their own, and stand among the "
    "methods with the usual one. Only searches are shown, which end before a final run does: the outcomes of final "
    "runs are in [the tables](../tables), and may be in another order."
)
ORDERS = (
    "The orders: lowest loss first, then the others' distance to it in nats; n: the seeds, those that all of the methods "
    "have. At one rate: each rate that all adapters with a complete search were searched at. At own rates: each at the rate "
    "that its search chose; full training, which has a grid of its own, stands only there. Same: at how many of the common "
    "rates the adapters are in the order of their own rates. With one or two seeds nothing is tested here, and no claim is "
    "judged on it."
)
CSV_COLUMNS = ["task", "settings", "model", "r", "method", "lr", "seed", "metric", "loss", "chosen", "run"]


class View(NamedTuple):
    """A panel as it is drawn: with all of its methods, or with MoRA's operators alone."""

    panel: Panel
    what: str
    curves: list[Curve]


def views(shown: Sequence[Panel]) -> list[View]:
    drawn = []
    for panel in shown:
        drawn.append(View(panel, panel.what, [c for c in panel.methods if c not in panel.far_below]))
        if panel.operators:
            drawn.append(View(panel, f"{panel.what}: MoRA's operators", panel.operators))
    return drawn


def drawn(shown: Sequence[Panel]) -> Figure:
    """Draw the panels. Their places are set in inches, since a layout engine's last digits differ from run to run."""
    look = _looks(shown)
    handles: list[Any] = [Line2D([], [], **one._asdict(), **OPEN, label=name) for name, one in look.items()]
    handles.append(Line2D([], [], ls="", marker="o", ms=8, mfc="none", color="k", label="chosen"))
    handles.append(Line2D([], [], **SEED, mec="k", label="a single seed, of two"))
    handles.append(Line2D([], [], ls="", marker=CARETUP, color="k", label="above the panel"))
    legend = ROW * math.ceil(len(handles) / LEGEND)
    all_views = views(shown)
    down, across = math.ceil(len(all_views) / ACROSS), min(ACROSS, len(all_views))
    width, height = PAGE * across / ACROSS, HEIGHT * down + legend + 0.05
    figure, axes = plt.subplots(down, across, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - 0.2 / width,
        top=1 - 0.35 / height,
        bottom=(0.5 + legend) / height,
        hspace=0.55,
        wspace=0.3,
    )
    for ax, view in zip(axes.flat, all_views, strict=False):
        _draw(ax, view, look)
    for ax in axes.flat[len(all_views) :]:
        ax.set_axis_off()
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), LEGEND))
    return figure


def _looks(shown: Sequence[Panel]) -> dict[str, Look]:
    """Return one look per label. Each method has a colour, MoRA's operators have variants of it, and each label a mark."""
    chosen = looks({curve.label: curve.method for panel in shown for curve in panel.searched})
    shades = {label: SHADES.get(label.partition(", ")[2], one.color) for label, one in chosen.items()}
    return {
        label: one._replace(color=shades[label], marker=MARKERS[i % len(MARKERS)])
        for i, (label, one) in enumerate(chosen.items())
    }


def _draw(ax: Axes, view: View, look: Mapping[str, Look]) -> None:
    panel, rates, losses = view.panel, set[float](), list[float]()
    for curve in view.curves:
        rates |= set(curve.rates)
        losses += [p.loss for p in curve.points.values() if math.isfinite(p.loss)]
        _line_of(ax, curve, look[curve.label])
    ax.set(xscale="log")
    ax.set_xlabel("learning rate", fontsize=6)
    ax.set_ylabel(SELECTIONS[panel.metric], fontsize=6)
    ax.set_xticks(sorted(rates), [format_lr(lr) for lr in sorted(rates)])
    ax.minorticks_off()
    ax.set_title(f"{view.what}\n{panel.config.model.name}, {panel.config.rank_text}", fontsize=6)
    if losses:
        low, top = min(losses), min(_top(losses), _near(view))
        if top > WIDE * low:
            ax.set(yscale="log", ylim=(low / 1.7, max(losses) * 1.5))
            ax.yaxis.set_major_formatter("{x:g}")
        else:
            ax.set_ylim(low - 0.07 * (top - low), top + 0.07 * (top - low))
    for curve in view.curves:
        _mark_above(ax, curve, look[curve.label])
    ax.tick_params(labelsize=6)
    ax.tick_params("x", labelsize=6 if len(rates) < MANY else 5)
    ax.grid(alpha=0.3)


def _near(view: View) -> float:
    """Return the loss at which a panel of held-out loss must end at the latest, so that its choices can be told apart."""
    if view.panel.metric != "validation_loss":
        return math.inf
    best = min(curve.lowest for curve in view.curves)
    chosen = [curve.mean(curve.chosen) for curve in view.curves if curve.chosen is not None]
    return best + max(NEAR, BEYOND * (max(filter(math.isfinite, chosen), default=best) - best))


def _mark_above(ax: Axes, curve: Curve, look: Look) -> None:
    """Draw a caret at the upper edge for each rate whose mean loss lies above it."""
    above = [lr for lr in curve.rates if curve.mean(lr) > ax.get_ylim()[1]]
    ax.plot(above, [1.0] * len(above), ls="", marker=CARETUP, color=look.color, transform=ax.get_xaxis_transform())


def _top(losses: Iterable[float]) -> float:
    """Return the loss at which a panel ends: just below the first gap more than twice as wide as the range under it."""
    ordered = sorted(losses)
    for below, above in itertools.pairwise(ordered[len(ordered) // 2 :]):
        if above - below > 2 * (below - ordered[0]):
            return below
    return ordered[-1]


def _line_of(ax: Axes, curve: Curve, look: Look) -> None:
    means = [(lr, mean) for lr in curve.rates if math.isfinite(mean := curve.mean(lr))]
    ax.plot([lr for lr, _ in means], [mean for _, mean in means], **look._asdict(), **OPEN)
    seeds = [(lr, loss) for lr in curve.rates for loss in curve.losses(lr).values() if len(curve.losses(lr)) > 1]
    ax.plot([lr for lr, _ in seeds], [loss for _, loss in seeds], **SEED, mec=look.color)
    if curve.chosen is not None and math.isfinite(curve.mean(curve.chosen)):
        ax.plot(curve.chosen, curve.mean(curve.chosen), "o", ms=8, mfc="none", color=look.color)


def _words(order: dict[str, float], n: int, rates: Mapping[str, float] | None = None) -> str:
    """Return an order as `n=2: MoRA; LoRA +0.0013`. With `rates`, each method's rate follows its name."""
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


def _below(shown: Sequence[Panel]) -> str:
    """Return a text that names the curves that are not drawn since they lie far below the others."""
    below = [(curve, panel) for panel in shown for curve in panel.far_below]
    losses = "; ".join(
        f"{curve.label} in {panel.name}, whose lowest loss is {curve.lowest:.2g}" for curve, panel in below
    )
    return f"Far below a panel, and not drawn: {losses}." if below else ""


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
    for paragraph in (f"![{TITLE}]({picture})", f"Scale {scale}. {ABOUT}", _below(shown), ORDERS, _in_all(shown)):
        lines += [paragraph, ""] if paragraph else []
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


def render(scale: str, experiments: Iterable[list[list[ResolvedCell]]], folder: Path) -> Path | None:
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
