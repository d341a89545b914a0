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
    """Return a tabular. Its cells are LaTeX already, and it has one column per letter of `alignment`.

    `comments` and `notes` are plain text. Comments stand above the tabular and are not typeset. Notes are rows in small
    type below the last rule, so that they are scaled and moved with the tabular.
    """
    above = [f"% {comment}" for comment in [*comments, "Needs \\usepackage{booktabs,xcolor}."]]
    begin = [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", _line(head), "\\midrule"]
    below = [_line([f"\\multicolumn{{{len(alignment)}}}{{l}}{{\\footnotesize {escape(note)}}}"]) for note in notes]
    return "\n".join([*above, *begin, *map(_line, rows), "\\bottomrule", *below, "\\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """Escape those of LaTeX's special characters that occur in names and values."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"
