"""The picture of the claims: every effect with its interval, beside the paper's effect. Each table and model has a panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..verdicts import Verdict
from .findings import Finding
from .style import PAGE

COLOURS: dict[Verdict, str] = {"shown": "C2", "equal": "C0", "contradicted": "C1", "undecided": "C6", "floor": "C6"}
HOLLOW = "floor"  # the verdict whose dot is not filled
BAND = "0.88"
UNITS = {"nats": "nats, the log of perplexity", "values": "singular values"}  # other units keep their name
LINE, EDGE = 0.13, 0.5  # heights in inches: of a line of a label, and of a panel's title and axis together


def forest(findings: Sequence[Finding]) -> Figure:
    """Draw every claim that was measured."""
    panels: dict[str, list[Finding]] = {}
    for f in (f for f in findings if f.outcome.effect is not None):
        panels.setdefault(f.panel, []).append(f)
    heights = [LINE * sum(f.heading.count("\n") + 1.6 for f in panel) for panel in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(PAGE, sum(heights) + EDGE * len(panels) + 0.5),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for ax, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(ax, title, panel)
    seen = {f.outcome.verdict for panel in panels.values() for f in panel}
    figure.legend(
        handles=_legend([verdict for verdict in COLOURS if verdict in seen]), loc="outside upper right", ncols=3
    )
    return figure


def _legend(verdicts: list[Verdict]) -> list[Any]:
    handles: list[Any] = [Line2D([], [], **_mark(verdict), lw=1.5, label=verdict) for verdict in verdicts]
    handles.append(Line2D([], [], ls="", marker="D", mfc="none", color="k", label="the paper's, without an interval"))
    handles.append(Patch(color=BAND, label="margin"))
    handles.append(Line2D([], [], color="k", lw=1.5, label="interval: 95%; with a margin 90%, at a second look 98%"))
    return handles


def _mark(verdict: Verdict) -> dict[str, Any]:
    colour = COLOURS[verdict]
    return {"marker": "o", "color": colour, "mfc": "w" if verdict == HOLLOW else colour}


def _panel(ax: Axes, title: str, findings: list[Finding]) -> None:
    for y, f in enumerate(findings):
        o, look = f.outcome, _mark(f.outcome.verdict)
        assert o.effect is not None
        if f.band is not None:
            ax.fill_between(f.band, y - 0.4, y + 0.4, color=BAND, lw=0)
        if o.interval is not None and math.isfinite(o.interval.low):
            ax.plot(o.interval, (y, y), color=look["color"], lw=1.5, solid_capstyle="butt")
        ax.plot(o.effect, y, **look)
        if o.paper is not None:
            ax.plot(o.paper, y, "D", mfc="none", color="k")
    ax.axvline(findings[0].bar, color="k", lw=0.6)
    ax.set_ylim(len(findings) - 0.5, -0.5)
    ax.set_yticks(range(len(findings)), [f.heading for f in findings])
    ax.set_title(title, loc="left", fontsize=7, weight="bold", pad=3)
    ax.set_xlabel(_axis(findings), labelpad=1)
    ax.grid(axis="x", alpha=0.3)


def _axis(findings: list[Finding]) -> str:
    """Return what the axis shows, and on which side of the line an effect agrees with the paper."""
    one = findings[0]
    what = f"first {'minus' if one.claim.ratio is None else 'over'} second, {UNITS.get(one.unit, one.unit)}"
    if one.claim.ratio is not None:
        return f"{what} (up to the line: agrees)"
    orders = any(f.claim.test == "order" for f in findings)
    mixed = any(f.claim.test != "order" for f in findings)
    side = "right" if one.outcome.sign > 0 else "left"
    where = "without a margin, " if mixed else ""
    return f"{what} ({where}{side} of 0: agrees)" if orders else what
