"""The losses of a run as points of a chart that the page's template draws; a hundred such charts take few bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from .pictures import smoothed, thinned
from .report_data import Point, Run

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 700, 260, 52, 20, 34  # sizes of the chart and of its margins


class Tick(NamedTuple):
    at: float
    text: str


class Chart(NamedTuple):
    """A chart's lines, as SVG coordinates. `least` is the place of the least held-out loss, and that loss."""

    training: str
    held_out: list[tuple[float, float]]
    least: tuple[float, float, Point] | None
    x: list[Tick]
    y: list[Tick]


def of_run(run: Run) -> Chart | None:
    """Return the run's chart; None if it has no losses. The losses of the first fiftieth of the steps may be cut off."""
    after = [p.value for p in (*run.training[len(run.training) // 50 :], *run.held_out)]
    if not after:
        return None
    last = max(p.step for p in (*run.training, *run.held_out)) or 1
    low, high = min(after), float(np.quantile(after, 0.995))
    room = 0.05 * (high - low or 1)
    low, high = low - room, high + room

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = (HEIGHT - BOTTOM) * (high - min(value, high)) / (high - low)
        return round(x, 1), round(y, 1)

    training = " ".join(f"{x},{y}" for x, y in (place(*p) for p in thinned(smoothed(run.training), 160)))
    least = min(run.held_out, key=lambda p: p.value, default=None)
    return Chart(
        training,
        [place(*p) for p in run.held_out],
        None if least is None else (*place(*least), least),
        [Tick(place(t, low)[0], f"{t:g}") for t in MaxNLocator(6).tick_values(0, last) if 0 <= t <= last],
        [Tick(place(0, t)[1], f"{t:g}") for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high],
    )
