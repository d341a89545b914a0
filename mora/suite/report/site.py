"""Writes the report: pages from templates, pictures for the page and for print, and the tables to download."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from mora.config import ConfigError
from mora.io import replace_file

from .. import figures, memory
from . import chart, decisions, detail, findings, grid, pictures, style
from .gather import TITLES, Gathered, Run, Shown

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = ("report.css", "report.js")
PAGES = {
    "index.html": "Findings",
    "tables.html": "Tables",
    "figures.html": "Figures",
    "costs.html": "Rates and costs",
    "runs.html": "Runs",
    "decisions.html": "Decisions",
}


class Picture:
    """For a page: its heading, the SVG, and the print files' stem where there are any."""

    def __init__(self, title: str, svg: str, anchor: str, caption: str = "", stem: str | None = None):
        self.title, self.svg, self.anchor, self.caption, self.stem = title, Markup(svg), anchor, caption, stem


class Site:
    """The folder that is written. `build` leaves nothing in it of an earlier report."""

    def __init__(self, folder: Path, gathered: Gathered) -> None:
        self.folder, self.gathered, self.files = folder, gathered, folder / "files"
        self._written: set[Path] = set()
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.claims = findings.of_claims(gathered.found) if set(gathered.scales) - {"smoke"} else []

    def build(self) -> Path:
        """Returns the first page. Raises: ConfigError where the folder holds something else."""
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / ASSETS[0]).is_file():
            raise ConfigError(f"--to {self.folder}: it holds other files than a report; name a new or an empty folder")
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        self.files.mkdir(exist_ok=True)
        for name in ASSETS:
            self._write(name, (TEMPLATES / name).read_text())
        self._findings()
        self._tables()
        self._page("figures.html", pictures=self._figures())
        self._page(
            "costs.html", searches=self._each(pictures.searches, "search"), costs=self._each(pictures.costs, "cost")
        )
        self._page(
            "runs.html", curves=self._curves(), runs=list(self.gathered.runs.values()), damaged=self.gathered.damaged
        )
        self._page(
            "decisions.html", sections=decisions.sections(), missing=self._missing(), unused=self.gathered.unused
        )
        for run in self.gathered.runs.values():
            self._run(run)
        for path in (self.folder / "runs").glob("*.html"):
            if path not in self._written:
                path.unlink()
        return self.folder / "index.html"

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        replace_file(path, text)
        self._written.add(path)

    def _page(self, name: str, template: str | None = None, root: str = "", **values: Any) -> None:
        page = self._templates.get_template(template or name)
        known = {"pages": PAGES, "here": name, "root": root, "titles": TITLES, "scales": self.gathered.scales}
        self._write(name, page.render(known | values))

    def _findings(self) -> None:
        judged = [f for f in self.claims if f.outcome.effect is not None]
        if judged:
            with style.in_print():
                style.printed(pictures.forest(self.claims), self.files / "claims")
        units = [(unit, list(group)) for unit, group in groupby(sorted(self.claims, key=_order), key=lambda f: f.unit)]
        self._page("index.html", units=units, judged=judged, claims=self.claims, damaged=self.gathered.damaged,
                   shown=self.gathered.shown, runs=self.gathered.runs)  # fmt: skip

    def _tables(self) -> None:
        found = [grid.of_table(shown, self.files) for shown in self.gathered.of_kind("table")]
        given = [(shown, *grid.of_settings(shown, self.files)) for shown in self.gathered.of_kind("settings")]
        self._page("tables.html", tables=found, given=given, runs=self.gathered.runs)

    def _figures(self) -> list[Picture]:
        found = []
        for shown in self.gathered.of_kind("figure", "spectrum", "memory"):
            stem = f"{shown.name}-{shown.scale}"
            with style.on_screen():
                figure = _drawn(shown, None)
            if figure is None:
                continue
            title = pictures.title_of(shown)
            svg = style.inline(figure, stem, f"{title}: {shown.experiment.title}")
            with style.in_print():
                if (again := _drawn(shown, style.COLUMN)) is not None:
                    style.printed(again, self.files / stem)
            caption = figures.CAPTIONS.get(shown.kind, memory.CAPTION)
            found.append(Picture(title, svg, stem, f"{shown.experiment.title}. {caption}", stem))
        return found

    def _each(self, draw: Callable[[Shown], Figure | None], what: str) -> list[Picture]:
        found = []
        for shown in self.gathered.of_kind("table", "memory"):
            anchor = f"{what}-{shown.name}-{shown.scale}"
            with style.on_screen():
                figure = draw(shown)
                if figure is not None:
                    title = pictures.title_of(shown)
                    found.append(Picture(title, style.inline(figure, anchor, f"{what}, {title}"), anchor))
        return found

    def _curves(self) -> list[tuple[Picture, list[Run]]]:
        """A picture a model and task, with its runs."""
        groups: dict[str, list[Run]] = {}
        for run in self.gathered.runs.values():
            if run.training:
                groups.setdefault(f"{run.config.task.name}, {run.config.model.name}", []).append(run)
        found = []
        for i, (name, runs) in enumerate(groups.items()):
            with style.on_screen():
                svg = style.inline(pictures.curves(runs, name), f"curves-{i}", f"Learning curves of {name}")
            found.append((Picture(name, svg, f"curves-{i}"), runs))
        return found

    def _run(self, run: Run) -> None:
        self._page(
            f"runs/{run.name}.html", "run.html", "../", run=run, chart=chart.of_run(run), settings=detail.settings(run),
            scores=detail.scores(run), facts=detail.facts(run), data=detail.data(run),
        )  # fmt: skip

    def _missing(self) -> list[tuple[Shown, int, int]]:
        """Experiments with cells that were not run, how many, and of how many."""
        found = []
        for shown in self.gathered.shown:
            cells = list(shown.cells)
            if missing := sum(not runs.results for runs in cells):
                found.append((shown, missing, len(cells)))
        return found


def _order(found: findings.Finding) -> tuple[int, bool, int]:
    """By unit; what was not run last."""
    return ("points", "nats", "values", "times").index(found.unit), found.outcome.effect is None, found.number


def _drawn(shown: Shown, width: float | None) -> Figure | None:
    """Figures 2 to 5 and the memory study, every seed visible; `width` in inches, of a page where None."""
    if shown.kind != "memory":
        return figures.drawn(shown.experiment, shown.rows, shown.scale, width or 6.4, every_seed=True)
    found = memory.arms(shown.rows)
    if not any(arm.runs for arm in found):
        return None
    return memory.drawn(shown.experiment, found, width or 8)[0]
