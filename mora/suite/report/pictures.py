"""Pictures that only the report has: searches, scores against costs, and learning curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mora.config.hardware_schema import SCALES
from mora.config.run_id import format_lr, run_id
from mora.planner.gpus import GIB

from ..cells import ResolvedCell
from .report_data import Point, Run, ShownExperiment
from .style import KEPT, Look, legend_below, looks

ACROSS = 2  # panels side by side
POINTS = 120  # per curve
SMOOTHED = 9  # the number of points over which each point of a curve is a mean
HELD_OUT = "-held-out"  # ends the name of a curve of held-out loss
SELECTIONS = {"validation_loss": "held-out loss (nats per token)", "value_nll": "loss of the values (nats per value)"}


def searches(shown: ShownExperiment) -> Figure | None:
    """Draw the selection metric against the learning rate, with the chosen rates ringed.

    There is one panel per searched column and one line per method.
    """
    panels: dict[str, list[ResolvedCell]] = {}
    seen: set[tuple[str, ...]] = set()
    for cell in (cell.of_search for cell in shown.cells):
        if not any(isinstance(score, float) for _, score in cell.choice.scores):
            continue
        if (key := (cell.spec.label, *map(run_id, cell.spec.search_runs))) not in seen:
            seen.add(key)
            panels.setdefault(" ".join([cell.spec.column.task, *cell.spec.column.overrides]), []).append(cell)
    if not panels:
        return None
    figure, axes = _grid(len(panels), 3.0)
    look = looks({cell.spec.label: cell.spec.row.method for cells in panels.values() for cell in cells})
    metric = shown.experiment.selection
    for ax, (name, cells) in zip(axes, panels.items(), strict=True):
        for cell in cells:
            _search(ax, cell, look[cell.spec.label])
        ax.set(xscale="log", xlabel="learning rate", ylabel=SELECTIONS.get(metric, metric))
        ax.set_title(_wrapped(name), fontsize=8)
        _bounds(ax, cells)
        ax.grid(alpha=0.3)
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend_below(figure, list(handles.values()), list(handles), min(3, len(axes) + 1))
    return figure


def _bounds(ax: Axes, cells: list[ResolvedCell]) -> None:
    """Set one tick per learning rate, and limit the loss axis so that runs that almost diverged do not flatten the panel."""
    scored = [(c.lr, s) for cell in cells for c, s in cell.choice.scores if c.lr and isinstance(s, float)]
    rates, losses = sorted({lr for lr, _ in scored}), [s for _, s in scored]
    ax.set_xticks(rates, [format_lr(lr) for lr in rates], fontsize=7)
    ax.minorticks_off()
    low = min(losses)
    top = min(max(losses), low + 4 * (float(np.median(losses)) - low))
    ax.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low) if top > low else None)


def _search(ax: Axes, cell: ResolvedCell, look: Look) -> None:
    settings = dict.fromkeys(c.overrides for c, _ in cell.choice.scores)
    for overrides in settings:
        line = sorted(
            (c.lr, s) for c, s in cell.choice.scores if c.overrides == overrides and c.lr and isinstance(s, float)
        )
        if not line:
            continue
        words = ", ".join(text.rpartition(".")[2] for text in overrides)
        label = ", ".join(filter(None, [cell.spec.label, words]))
        ax.plot(*zip(*line, strict=True), **look._asdict(), ms=4, label=label)
        again = [
            (c.lr, s)
            for c, s in cell.choice.second_seed.items()
            if c.overrides == overrides and c.lr and isinstance(s, float)
        ]
        ax.plot([x for x, _ in again], [y for _, y in again], "x", color=look.color)
        if cell.selected is not None and cell.selected.overrides == overrides:
            at = [(x, y) for x, y in line if x == cell.selected.lr]
            ax.plot([x for x, _ in at], [y for _, y in at], "o", ms=10, mfc="none", color=look.color)


class Cost(NamedTuple):
    method: str
    values: tuple[float, ...]
    ms: list[float]
    gib: list[float]
    trainable: list[float]


def costs(shown: ShownExperiment) -> Figure | None:
    """Draw every seed's score in the last column against milliseconds per step, memory and trainable parameters."""
    by_label: dict[str, Cost] = {}
    for cell in shown.cells:
        if (
            cell.spec.column == shown.rows[0][-1].spec.column
            and cell.numbers.values
            and len(cell.results) == len(cell.numbers.values)
        ):
            results = [result for _, result in cell.results]
            by_label[cell.spec.label] = Cost(
                cell.spec.row.method,
                cell.numbers.values,
                [1e3 * (r.speed or {}).get("step_s", math.nan) for r in results],
                [(r.peak_memory_bytes or math.nan) / GIB for r in results],
                [float(r.parameters.trainable) for r in results],
            )
    if not by_label:
        return None
    look = looks({label: cost.method for label, cost in by_label.items()})
    figure, axes = _grid(3, 3.4)
    for ax, (name, label) in zip(
        axes,
        (
            ("ms", "step time (ms)"),
            ("gib", "peak memory of the whole run (GiB)"),
            ("trainable", "trainable parameters"),
        ),
        strict=True,
    ):
        for row, cost in by_label.items():
            ax.plot(getattr(cost, name), cost.values, alpha=0.8, label=row, **look[row]._replace(ls="")._asdict())
        ax.set(xlabel=label, ylabel=f"{shown.rows[0][-1].spec.column.name.replace('_', ' ')} ({shown.experiment.unit})")
        ax.grid(alpha=0.3)
        if name == "trainable":
            ax.set_xscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, 3)
    return figure


def curves(runs: Iterable[Run]) -> Figure:
    """Draw the smoothed training loss of the runs, and their held-out loss if any has one.

    Each curve has a name, by which the page can hide it.
    """
    runs = list(runs)
    held = [run for run in runs if run.held_out]
    look = looks({run.label: run.config.method.name for run in runs})
    figure, axes = _grid(1 + bool(held), 3.6)
    _curves(
        axes[0], "training loss (nats per token)", look, [(run, thinned(smoothed(run.training))) for run in runs], ""
    )
    if held:
        _curves(axes[1], "held-out loss (nats per token)", look, [(run, run.held_out) for run in held], HELD_OUT)
    handles = [Line2D([], [], color=kind.color, ls=kind.ls) for kind in look.values()]
    legend_below(figure, handles, list(look), len(axes) + 1)
    return figure


def _curves(ax: Axes, label: str, look: dict[str, Look], lines: list[tuple[Run, list[Point]]], suffix: str) -> None:
    """Draw one panel of curves; a held-out loss has a ring at its least. The first fall of a loss may be above the panel."""
    losses: list[float] = []
    for run, points in lines:
        values = [p.value for p in points]
        ring = [int(np.argmin(values))] if suffix else []
        kind = look[run.label]._replace(marker="o" if suffix else "")._asdict()
        line = ax.plot(*zip(*points, strict=True), lw=1, ms=6, mfc="none", markevery=ring, **kind)[0]
        line.set_gid(KEPT + run.name + suffix)
        losses += values[len(values) // 20 :]
    ax.set(xlabel="step", ylabel=label, ylim=(None, np.quantile(losses, 0.995)))
    ax.grid(alpha=0.3)


def smoothed(points: list[Point]) -> list[Point]:
    """Replace each value by the mean over the SMOOTHED points around it."""
    if not points:
        return []
    values = np.array([p.value for p in points])
    padded = np.pad(values, SMOOTHED // 2, mode="edge")
    return [
        Point(p.step, float(v))
        for p, v in zip(points, np.convolve(padded, np.ones(SMOOTHED) / SMOOTHED, "valid"), strict=True)
    ]


def thinned(points: list[Point], max_points: int = POINTS) -> list[Point]:
    """Keep at most `max_points` points, evenly spaced and including the last."""
    if len(points) <= max_points:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, max_points).round().astype(int)]


def title_of(shown: ShownExperiment) -> str:
    return f"{shown.number}, scale {shown.scale} ({SCALES[shown.scale]})"


def _grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    across = min(panels, ACROSS)
    down = math.ceil(panels / across)
    figure, axes = plt.subplots(
        down, across, figsize=(max(5.0, 3.6 * across), height * down), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[panels:]:
        ax.remove()
    return figure, list(axes.flat[:panels])


def _wrapped(name: str) -> str:
    """Return the overrides without their paths, wrapped, such as `uuid pairs=150 global_batch_size=15`."""
    return textwrap.fill(" ".join(word.rpartition(".")[2] for word in name.split()), 44)
