"""Write the report: pages from templates, pictures for the page and for print, and tables to download."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from mora.config.hardware_schema import SCALES
from mora.config.source import ROOT
from mora.errors import ConfigError, MoraError
from mora.io import replace_file

from .. import figures, memory_study
from . import chart, decisions, detail, findings, forest, pack, pictures, style, table_cells
from .report_data import Gathered, Run, ShownExperiment

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
    """A picture for a page: its heading, the SVG and the stem of its print files, or why there is no picture."""

    def __init__(self, title: str, svg: str, anchor: str, caption: str = "", stem: str = "", problem: str = ""):
        self.title, self.svg, self.anchor = title, Markup(svg), anchor
        self.caption, self.stem, self.problem = caption, stem, problem


class Site:
    """The report's folder, and what is written there."""

    def __init__(self, folder: Path, gathered: Gathered) -> None:
        self.folder, self.gathered = folder, gathered
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.claims = findings.of_claims(gathered.resolved) if set(gathered.scales) - {"smoke"} else []

    def build(self) -> Path:
        """Write all pages and return the path of the first. Nothing of an earlier report stays.

        Raises:
            ConfigError: The folder holds something else.
        """
        there = self.folder
        is_report = all((there / name).is_file() for name in (*ASSETS, "index.html"))
        if there.exists() and not (is_report or (there.is_dir() and not any(there.iterdir()))):
            raise ConfigError(f"--to {there}: not a report's folder; give a new or empty folder")
        there.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=there.parent) as partial:
            self.folder = Path(partial) / there.name
            self.files.mkdir(parents=True)
            self._all()
            if there.exists():
                there.rename(Path(partial) / "before")
            self.folder.rename(there)
        self.folder = there
        return there / "index.html"

    @property
    def files(self) -> Path:
        """The folder of the files to download."""
        return self.folder / "files"

    def _all(self) -> None:
        for name in ASSETS:
            self._write(name, (TEMPLATES / name).read_text())
        drawn = self._figures()
        self._findings([picture.anchor for picture in drawn])
        self._tables()
        self._page("figures.html", pictures=drawn)
        self._page(
            "costs.html", searches=self._each(pictures.searches, "search"), costs=self._each(pictures.costs, "cost")
        )
        self._page(
            "runs.html", curves=self._curves(), runs=list(self.gathered.runs.values()), damaged=self.gathered.damaged
        )
        self._page(
            "decisions.html", sections=decisions.sections(), missing=self._missing(), unused=self.gathered.unused
        )
        self._page("run.html")
        self._write("runs.js", pack.script({name: self._run(run) for name, run in sorted(self.gathered.runs.items())}))

    def _write(self, name: str, text: str) -> None:
        replace_file(self.folder / name, text)

    def _page(self, name: str, **values: Any) -> None:
        known = {"pages": PAGES, "here": name, "titles": SCALES, "scales": self.gathered.scales}
        self._write(name, self._templates.get_template(name).render(known | values))

    def _findings(self, figures: list[str]) -> None:
        """Write the first page. `figures` holds the anchors of the figures that exist."""
        judged = [f for f in self.claims if f.outcome.effect is not None]
        if judged:
            with style.in_print():
                style.printed(forest.forest(self.claims), self.files / "claims")
        axes: dict[str, list[findings.Finding]] = {}
        for f in sorted(self.claims, key=lambda f: f.outcome.effect is None):
            axes.setdefault(f.source, []).append(f)
        self._page(
            "index.html", axes=sorted(axes.values(), key=lambda axis: min(f.number for f in axis)), judged=judged,
            claims=self.claims, figures=figures, damaged=self.gathered.damaged, runs=self.gathered.runs,
        )  # fmt: skip

    def _tables(self) -> None:
        damaged = self.gathered.damaged
        rendered = [table_cells.of_table(shown, self.files, damaged) for shown in self.gathered.of_kind("table")]
        given = [(shown, *table_cells.of_settings(shown, self.files)) for shown in self.gathered.of_kind("settings")]
        self._page("tables.html", tables=rendered, given=given, runs=self.gathered.runs)

    def _figures(self) -> list[Picture]:
        drawn = []
        for shown in self.gathered.of_kind("figure", "spectrum", "memory"):
            anchor, title = f"{shown.name}-{shown.scale}", pictures.title_of(shown)
            try:
                picture = self._figure(shown, anchor, title)
            except MoraError as error:
                picture = Picture(title, "", anchor, problem=str(error).replace(f"{ROOT}/", ""))
            drawn += [picture] if picture else []
        return drawn

    def _figure(self, shown: ShownExperiment, stem: str, title: str) -> Picture | None:
        """Draw the figure for the page and for print; None if nothing was run.

        Raises:
            DamagedFileError: A log or a spectrum is damaged.
        """
        with style.on_screen():
            figure = _drawn(shown, None)
        if figure is None:
            return None
        svg = style.inline(figure, stem, f"{title}: {shown.experiment.title}")
        with style.in_print():
            if (again := _drawn(shown, style.COLUMN)) is not None:
                style.printed(again, self.files / stem)
        caption = figures.CAPTIONS.get(shown.kind, memory_study.CAPTION).replace("`", "")
        return Picture(title, svg, stem, f"{shown.experiment.title}. {caption}", stem)

    def _each(self, draw: Callable[[ShownExperiment], Figure | None], what: str) -> list[Picture]:
        drawn = []
        for shown in self.gathered.of_kind("table", "memory"):
            anchor = f"{what}-{shown.name}-{shown.scale}"
            with style.on_screen():
                figure = draw(shown)
                if figure is not None:
                    title = pictures.title_of(shown)
                    drawn.append(Picture(title, style.inline(figure, anchor, f"{what}, {title}"), anchor))
        return drawn

    def _curves(self) -> list[tuple[Picture, list[Run]]]:
        """Draw one picture per model and task, each with its runs."""
        groups: dict[str, list[Run]] = {}
        for run in self.gathered.runs.values():
            if run.training:
                groups.setdefault(f"{run.config.task.name}, {run.config.model.name}", []).append(run)
        curves = []
        for i, (name, runs) in enumerate(groups.items()):
            with style.on_screen():
                svg = style.inline(pictures.curves(runs), f"curves-{i}", f"Learning curves of {name}")
            curves.append((Picture(name, svg, f"curves-{i}"), runs))
        return curves

    def _run(self, run: Run) -> str:
        return self._templates.get_template("one_run.html").render(
            run=run, chart=chart.of_run(run), settings=detail.settings(run), scores=detail.scores(run),
            facts=detail.facts(run), data=detail.data(run),
        )  # fmt: skip

    def _missing(self) -> list[tuple[ShownExperiment, int, int]]:
        """Return the experiments with cells that were not run, each with the number of those and of all its cells."""
        counts = []
        for shown in self.gathered.shown:
            cells = list(shown.cells)
            if missing := sum(not runs.results for runs in cells):
                counts.append((shown, missing, len(cells)))
        return counts


def _drawn(shown: ShownExperiment, width: float | None) -> Figure | None:
    """Draw Figures 2 to 5 and the memory study with every seed visible.

    They have no title, since the page or the paper has a caption. `width` is in inches; None means the width of a page.
    """
    if shown.kind != "memory":
        figure = figures.drawn(shown.experiment, shown.rows, shown.scale, width or 6.4, every_seed=True)
        if figure is not None:
            figure.suptitle("")
        return _in_a_column(figure) if figure and width else figure
    arms = memory_study.arms(shown.rows)
    if not any(arm.runs for arm in arms):
        return None
    figure = memory_study.drawn(shown.experiment, arms, width or 8)[0]
    figure.axes[0].set_title("")
    return _in_a_column(figure) if width else figure


def _in_a_column(figure: Figure) -> Figure:
    """Fit the figure into a column: legends without room go below the panels, and the axis labels decide the height."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, 1.15 * height)
    named: dict[str, Any] = {}
    for ax in figure.axes:
        if (legend := ax.get_legend()) is not None:
            named |= zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True)
            legend.remove()
    style.legend_below(figure, list(named.values()), list(named), 2, size=7)
    return figure
