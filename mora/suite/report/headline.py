"""python -m mora.suite.report.headline: README's picture, every claim that was judged; make render."""

from __future__ import annotations

from pathlib import Path

from .. import ledger
from . import findings, pictures, style
from .gather import Gathered


def render(gathered: Gathered, page: Path = ledger.FULL) -> Path:
    """Writes the picture beside the ledger, under its name, as PDF and SVG; returns the latter's path."""
    with style.in_print():
        style.printed(pictures.forest(findings.of_claims(gathered)), page.with_suffix(""))
    return page.with_suffix(".svg")


if __name__ == "__main__":
    print(f"figure: {render(Gathered())}")
