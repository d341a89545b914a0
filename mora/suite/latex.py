"""A table as LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(
    comments: Sequence[str],
    alignment: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
) -> str:
    """Return a tabular, whose cells are LaTeX already and whose columns are as many as `alignment` has letters.

    `comments` and `notes` are plain text. Comments, above the tabular, are not set; notes are, in small type below its last
    rule, as rows of the tabular, so that they are scaled and moved with it.
    """
    above = [f"% {comment}" for comment in [*comments, "Needs \\usepackage{booktabs,xcolor}."]]
    begin = [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", _line(head), "\\midrule"]
    below = [_line([f"\\multicolumn{{{len(alignment)}}}{{l}}{{\\footnotesize {escape(note)}}}"]) for note in notes]
    return "\n".join([*above, *begin, *map(_line, rows), "\\bottomrule", *below, "\\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """Escape plain text for LaTeX: those special characters that names and values have."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"
