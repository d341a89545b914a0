"""README's picture: every claim that was judged. `make render` writes it beside the ledger."""

from __future__ import annotations

from pathlib import Path

from .. import ledger_text
from ..contrasts import ResolvedTables
from . import findings, forest, style


def render(resolved: ResolvedTables, page: Path = ledger_text.FULL) -> Path:
    """Write the picture beside the full ledger, under the ledger's name, as PDF and SVG; return the path of the SVG."""
    with style.in_print():
        style.printed(forest.forest(findings.of_claims(resolved)), page.with_suffix(""))
    return page.with_suffix(".svg")
