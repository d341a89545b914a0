"""The look of the pictures, on a page, whose colours they take, and in print. The palette suits colour-blind readers."""

from __future__ import annotations

import io
import math
import re
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mora.io import replace_file, replacing

from . import svg

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")  # Okabe and Ito 2008
METHODS = {
    "fft": "#000000", "none": "#7F7F7F", "lora": COLOURS[0], "mora": COLOURS[1], "relora": COLOURS[5], "remora": COLOURS[4],
    "dora": COLOURS[3], "lora_plus": COLOURS[2], "asylora": COLOURS[6],
}  # fmt: skip
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))
MARKERS = "os^Dv*XP<>"
COLUMN, PAGE = 3.35, 6.9  # widths in inches: of a column, and of a page with two columns
BASE: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "svg.hashsalt": "mora",
    "legend.frameon": False,
}
PRINT = BASE | {"font.size": 7, "pdf.fonttype": 42, "svg.fonttype": "path", "lines.linewidth": 1, "lines.markersize": 4}
SCREEN = BASE | {"font.size": 9, "svg.fonttype": "none", "path.simplify_threshold": 0.5}
PIXELS = 1.5  # on the page, per point of a picture
LEAST = 0.7  # the least share of its width at which a picture is shown; below, it scrolls, so that letters stay legible
UNDATED = {"Date": None, "Creator": None}
KEPT = "run-"  # begins the ids that a page looks up


class Look(NamedTuple):
    """The look of a row: the colour of its method, and a line and a mark that tell it from the method's other rows."""

    color: str
    ls: Any
    marker: str


def looks(methods: dict[str, str]) -> dict[str, Look]:
    """Return one look per label, given the method of each. A method has the same colour in every picture."""
    chosen: dict[str, Look] = {}
    for label, method in methods.items():
        i = sum(methods[other] == method for other in chosen)
        colour = METHODS.get(method, COLOURS[6])
        chosen[label] = Look(colour, DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
    return chosen


def legend_below(figure: Figure, handles: list[Any], labels: list[str], columns: int, size: int = 8) -> None:
    """Put the legend below the panels; the figure grows, so that they keep their height."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.0225 * size * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=size)


def on_screen() -> AbstractContextManager[None]:
    return plt.rc_context(SCREEN)


def in_print() -> AbstractContextManager[None]:
    return plt.rc_context(PRINT)


def saved(figure: Figure, path: Path) -> None:
    """Write the figure to `path` as an SVG, with text as text and the same bytes every time, and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, plt.rc_context({"svg.hashsalt": "mora", "svg.fonttype": "none"}):
        figure.savefig(partial, format="svg", metadata=UNDATED)
    plt.close(figure)


def inline(figure: Figure, name: str, label: str) -> str:
    """Return the figure as an SVG element in the page's colours, with `label` for screen readers, and close the figure.

    `name` keeps apart the ids that several pictures of one page define.
    """
    _settle(figure)
    out = io.StringIO()
    for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
        patch.set_alpha(0)
    with plt.rc_context(SCREEN | {"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(out, metadata=UNDATED)
    plt.close(figure)
    drawn = out.getvalue()
    drawn = svg.bare(svg.shortened(drawn[drawn.index("<svg") :], KEPT)).replace("#000000", "currentColor")
    width = PIXELS * 72 * figure.get_size_inches()[0]
    size = f"max-width: {width:.0f}px; min-width: {LEAST * width:.0f}px"
    opened = f'<svg class="picture" role="img" aria-label="{escape(label)}" style="{size}" viewBox='
    return re.sub(r"<svg [^>]*?viewBox=", opened, drawn, count=1)


def printed(figure: Figure, stem: Path) -> None:
    """Write `stem`.svg, with text as outlines, and `stem`.pdf, with embedded fonts, and close the figure.

    If an equal SVG exists, nothing is written, since embedding fonts takes as long as everything else.
    """
    _settle(figure)
    stem.parent.mkdir(parents=True, exist_ok=True)
    shown, pdf = stem.with_suffix(".svg"), stem.with_suffix(".pdf")
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata=UNDATED)
    drawn = svg.shortened(out.getvalue())
    if not (pdf.is_file() and shown.is_file() and shown.read_text() == drawn):
        embedded = io.BytesIO()
        FigureCanvasPdf(figure).print_pdf(embedded, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        replace_file(pdf, embedded.getvalue())
        replace_file(shown, drawn)
    plt.close(figure)


def _settle(figure: Figure) -> None:
    """Compute the layout once and round it to four decimals, since the solver's last digits differ from run to run."""
    figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]  # a constrained layout, by SCREEN and PRINT
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.set_position(tuple(round(edge, 4) for edge in ax.get_position().bounds))
