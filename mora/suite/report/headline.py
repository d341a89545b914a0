"""python -m mora.suite.report.headline: README's picture, every claim that was judged; make render."""

from __future__ import annotations

from pathlib import Path

from ..figures import output_folder
from . import findings, pictures, style
from .gather import Gathered

STEM = "claims"


def render(gathered: Gathered, folder: Path) -> Path:
    """Writes `claims.pdf` and `claims.svg` into the folder; returns the latter's path."""
    with style.in_print():
        style.printed(pictures.forest(findings.of_claims(gathered)), folder / STEM)
    return (folder / STEM).with_suffix(".svg")


if __name__ == "__main__":
    print(f"figure: {render(Gathered(), output_folder('lite', 'figures'))}")
