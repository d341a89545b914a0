"""Training loss by step, from the logs beside the results: curves over seeds, with restarts and epochs marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mora.config import RunConfig
from mora.config.run_id import log_path
from mora.errors import DamagedFileError
from mora.results import RunResult

from .cells import ResolvedCell
from .usable import log_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING_STEPS = 5
POINTS = 250  # of a curve, if every seed has its own
FALL = 0.15  # the first share of a run, whose loss may lie above the panel: methods differ in what comes after
MOST_EPOCHS = 9  # if there are more, their ends are not marked
BRING = "copy it from the machine of the run, or remove it and the result beside it to repeat the run"
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # as many as Figure 4 has curves


@dataclass(frozen=True)
class Curve:
    """A row's smoothed loss, of shape (seeds, steps). `i` is its place in the panel, which decides its look."""

    i: int
    label: str
    losses: np.ndarray


def shown(cell: ResolvedCell) -> list[tuple[RunConfig, RunResult]]:
    """Return those runs of a curve that are done; none if a seed is missing, unless curves are differences by seed."""
    results = [(config, result) for config, result in cell.results if result.status == "done"]
    return results if cell.spec.experiment.minus_first or len(results) == len(cell.final_runs) else []


def by_seed(cell: ResolvedCell) -> dict[int, np.ndarray]:
    """Return, by seed, the smoothed training loss of every step."""
    losses = [(config, _losses_of(config, result)) for config, result in shown(cell)]
    steps = max((len(curve) for _, curve in losses), default=0)
    for config, curve in losses:
        if len(curve) < steps:
            path = log_path(config)
            raise DamagedFileError(f"{path} is truncated: it has {len(curve)} steps, another seed has {steps}; {BRING}")
    return {config.seed: _smooth(curve) for config, curve in losses}


def curves(panel: list[ResolvedCell]) -> list[Curve]:
    """Return the curves of a panel. With `minus_first`, the first row's loss at the same step and seed is subtracted."""
    rows = list(enumerate(map(by_seed, panel)))
    if panel[0].spec.experiment.minus_first:
        _, first = rows.pop(0)
        rows = [(i, {seed: own[seed] - first[seed] for seed in own if seed in first}) for i, own in rows]
    return [Curve(i, panel[i].spec.curve_label, np.array([*own.values()])) for i, own in rows if own]


def draw(axes: Axes, panel: list[ResolvedCell], every_seed: bool) -> None:
    """Draw a panel. With `every_seed` each seed has its own line."""
    minus, drawn = panel[0].spec.experiment.minus_first, curves(panel)
    for curve in drawn:
        colour, length = f"C{curve.i}", curve.losses.shape[1]
        apart = max(1, length // POINTS) if every_seed else 1  # there are many lines, so each has fewer points
        steps, losses = np.arange(1, length + 1)[::apart], curve.losses[:, ::apart]
        axes.plot(steps, losses.mean(0), ls=STYLES[curve.i % len(STYLES)], lw=1.6, color=colour, label=curve.label)
        if len(losses) > 1:
            axes.fill_between(steps, losses.min(0), losses.max(0), color=colour, alpha=0.2, lw=0)
        for line in losses if every_seed else ():
            axes.plot(steps, line, color=colour, lw=0.5, alpha=0.7)
    if drawn:
        _mark(axes, panel)
        _bound(axes, drawn, minus)
    axes.set(xlabel="step", ylabel=f"{'loss difference' if minus else 'training loss'} (nats per token)")


def about(panels: list[list[ResolvedCell]]) -> str:
    """Return a text for the figure that says what a point, a line and a band are."""
    several = any(len(shown(cell)) > 1 for panel in panels for cell in panel)
    band = "; line: the mean of the seeds, band: their range" if several else ""
    return f"each point: the mean of {SMOOTHING_STEPS} steps{band}"


def _bound(axes: Axes, drawn: list[Curve], minus: bool) -> None:
    late = [curve.losses[:, int(FALL * curve.losses.shape[1]) :] for curve in drawn]
    if minus:
        axes.axhline(0, color="k", lw=0.8)
        late.append(np.zeros((1, 1)))
    low, high = min(c.min() for c in late), max(c.max() for c in late)
    if high > low:
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))


def _mark(axes: Axes, panel: list[ResolvedCell]) -> None:
    """Mark the restarts that the logs record, and the ends of epochs if they are few."""
    runs = [pair for row in panel for pair in shown(row)]
    restarts = {int(row["step"]) for config, result in runs for row in log_of(config, result) if "restart" in row}
    epochs = {step for config, result in runs for step in epoch_ends(config, result)}
    for steps, style, label in ((epochs, "--", "end of an epoch"), (restarts, ":", "restart")):
        for i, step in enumerate(sorted(steps)):
            axes.axvline(step, color="0.45", ls=style, lw=0.8, zorder=0, label="" if i else label)


def epoch_ends(config: RunConfig, result: RunResult) -> list[int]:
    """Return the steps at which an epoch ends before the run does; none if there are more than MOST_EPOCHS."""
    sequences = result.data.get("report", {}).get("sequences")
    length = (sequences or math.inf) / config.task.train.global_batch_size
    epochs = math.ceil((result.last_step or 0) / length)
    return [round(i * length) for i in range(1, epochs)] if epochs <= MOST_EPOCHS else []


def _losses_of(config: RunConfig, result: RunResult) -> list[float]:
    """Return the training loss of every step. Raises DamagedFileError if the log is missing or a loss is not a number."""
    path, losses = log_path(config), [row["loss"] for row in log_of(config, result) if "loss" in row]
    if not losses:
        raise DamagedFileError(f"{path} is missing, or holds no loss; {BRING}")
    for step, loss in enumerate(losses, 1):
        if not isinstance(loss, float | int) or not math.isfinite(loss):
            raise DamagedFileError(
                f"{path} is damaged (step {step}, loss={str(loss)[:80]!r}: expected a number); {BRING}"
            )
    return losses


def _smooth(values: list[float]) -> np.ndarray:
    kernel = np.ones(SMOOTHING_STEPS) / SMOOTHING_STEPS
    padded = np.concatenate([np.full(SMOOTHING_STEPS - 1, values[0]), values])
    return np.convolve(padded, kernel, mode="valid")
