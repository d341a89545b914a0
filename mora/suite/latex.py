"""A table as LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(notes: Sequence[str], alignment: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a tabular. Its cells are LaTeX already; `notes` are plain text and become comments above it."""
    comments = [f"% {note}" for note in [*notes, "Needs \\usepackage{booktabs,xcolor}."]]
    begin = [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", _line(head), "\\midrule"]
    return "\n".join([*comments, *begin, *map(_line, rows), "\\bottomrule", "\\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """Escape plain text for LaTeX: those special characters that names and values have."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"
