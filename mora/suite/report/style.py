"""How pictures look: one palette that colour-blind readers tell apart, on a page in its own colours, and in print."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mora.train.log import replace_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")  # Okabe and Ito 2008
COLUMN, PAGE = 3.35, 6.9  # inches, of a column and of a page of two
BASE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "svg.hashsalt": "mora",
    "legend.frameon": False,
}
PRINT = BASE | {"font.size": 7, "pdf.fonttype": 42, "svg.fonttype": "path", "lines.linewidth": 1, "lines.markersize": 4}
SCREEN = BASE | {"svg.fonttype": "none", "path.simplify_threshold": 0.5}
PIXELS = 1.5  # of the page, a point of a picture
KEPT = "run-"  # how names begin that a page looks for
LONG = re.compile(r"-?\d+\.\d{3,}")
PLACES = re.compile(r' (?:d|x|y)="[^"]*"')
NAMES = re.compile(rf' id="(?!{KEPT}|[mpc][0-9a-f]{{10}})[^"]*"')


def on_screen() -> AbstractContextManager[None]:
    return plt.rc_context(SCREEN)


def in_print() -> AbstractContextManager[None]:
    return plt.rc_context(PRINT)


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG element that takes the colours of its page, named for a screen reader. Closes it.

    `name`: sets apart the marks that several pictures of one page define.
    """
    _settle(figure)
    out = io.StringIO()
    with plt.rc_context(SCREEN | {"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = NAMES.sub("", svg).replace("#000000", "currentColor")
    svg = _shortened(svg)
    width = f"{PIXELS * 72 * figure.get_size_inches()[0]:.0f}px"
    opened = f'<svg class="picture" role="img" aria-label="{escape(label)}" style="max-width: {width}" viewBox='
    return re.sub(r"\n\s*", "\n", re.sub(r"<svg [^>]*?viewBox=", opened, svg, count=1))


def printed(figure: Figure, stem: Path) -> None:
    """Writes `stem`.svg, with letters as outlines, and `stem`.pdf, with its fonts; neither where the first is there and
    equal, for embedding fonts takes as long as all else. Closes the figure."""
    _settle(figure)
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg, pdf = stem.with_suffix(".svg"), stem.with_suffix(".pdf")
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = _shortened(out.getvalue())
    if not (pdf.is_file() and svg.is_file() and svg.read_text() == drawn):
        figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        replace_file(svg, drawn)
    plt.close(figure)


def _settle(figure: Figure) -> None:
    """Lays the panels out once, to four places: the solver's last digits differ from figure to figure."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.set_position(tuple(round(edge, 4) for edge in ax.get_position().bounds))


def _shortened(svg: str) -> str:
    """Paths and places to two decimals, a hundredth of a point; scales are left as they are."""
    return PLACES.sub(lambda found: LONG.sub(lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), found[0]), svg)
