"""A table as the page shows it: every cell with its numbers, and with what a click on it shows."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mora.config.run_id import format_lr, run_id

from .. import settings, tables
from ..cell_specs import Candidate
from ..cells import ResolvedCell
from ..tables import DIGITS
from ..verdicts import Estimate
from .report_data import ShownExperiment


class Seed(NamedTuple):
    """One run of a cell."""

    seed: int
    value: str
    run: str


class CellView(NamedTuple):
    """A cell of the page.

    `state` is measured, diverged, not run or damaged, or none if there is no such cell. `order` is the key for sorting.
    """

    state: str
    paper: str
    ours: str
    effect: str
    order: str
    floor: bool
    interval: str
    rate: str
    seeds: list[Seed]


@dataclass
class Line:
    label: str
    trainable: str
    cells: list[CellView]
    beyond: list[str]


@dataclass
class TableView:
    """A table of the page.

    `head` names the columns of scores, and `beyond` those beside them. `files` are the names of files to download, by kind.
    """

    anchor: str
    name: str
    title: str
    scale: str
    models: str
    measured: int
    wanted: int
    head: list[str]
    beyond: list[str]
    lines: list[Line]
    notes: list[str]
    files: dict[str, str]


def of_table(shown: ShownExperiment, files: Path, damaged: Collection[str] = ()) -> TableView:
    """Write the table into `files` as Markdown, LaTeX and CSV, and return what the page shows.

    `damaged` holds the names of damaged result files.
    """
    rows, experiment = shown.rows, shown.experiment
    path = tables.render(shown.name, experiment, rows, shown.scale, files)
    columns = [cell.spec.heading for cell in rows[0]]
    lines = [
        Line(
            row[0].spec.label,
            tables.trainable(row),
            [_cell(rows, i, j, damaged) for j in range(len(row))],
            tables.further_columns(experiment, row),
        )
        for i, row in enumerate(rows)
    ]
    cells = [cell for line in lines for cell in line.cells if cell.state != "none"]
    return TableView(
        anchor=f"{shown.name}-{shown.scale}",
        name=shown.number,
        title=experiment.title,
        scale=shown.scale,
        models=tables.models(rows),
        measured=sum(cell.state not in ("not run", "damaged") for cell in cells),
        wanted=len(cells),
        head=columns,
        beyond=tables.heading(experiment, rows)[2 + len(columns) :],
        lines=lines,
        notes=tables.notes(experiment),
        files=_files(path),
    )


def of_settings(shown: ShownExperiment, files: Path) -> tuple[list[settings.Line], dict[str, str]]:
    """Return the paper's hyperparameters beside ours, and the names of the files to download."""
    return settings.lines(shown.experiment), _files(settings.render(shown.name, shown.experiment, files))


def _files(path: Path) -> dict[str, str]:
    return {kind: path.with_suffix(end).name for kind, end in (("Markdown", ".md"), ("CSV", ".csv"), ("LaTeX", ".tex"))}


def _cell(rows: list[list[ResolvedCell]], i: int, j: int, damaged: Collection[str]) -> CellView:
    cell, shown = rows[i][j], tables.entry_of(rows, i, j)
    if shown is None:
        return CellView("none", "", "", "", "", False, "", "", [])
    digits, numbers = DIGITS.get(cell.spec.experiment.unit, 4), shown.numbers
    paper = "" if numbers.paper is None else f"paper {numbers.paper:.{digits}f}"
    if numbers.mean is None or numbers.values is None:
        lost = any(f"{run_id(config)}.json" in damaged for config in (*cell.spec.search_runs, *cell.final_runs))
        state = "damaged" if lost else "not run"
        return CellView(state, paper, state, "", "", False, "", "", [])
    count = f"{n}" if (n := len(numbers.values)) >= numbers.seeds else f"{n} of {numbers.seeds}"
    if not math.isfinite(numbers.mean):
        return CellView(
            "diverged", paper, f"diverged ({count})", "", "", False, "", _rate(cell.selected), _seeds(cell, digits)
        )
    spread = "" if numbers.sd is None else f" ± {numbers.sd:.{digits}f}"
    effects = "" if shown.effect is None else f"{shown.effect:+.{digits}f}"
    if shown.effect is not None and shown.effect_paper is not None:
        effects += f" (paper {shown.effect_paper:+.{digits}f})"
    return CellView(
        "measured",
        paper,
        f"{numbers.mean:.{digits}f}{spread} ({count})",
        effects,
        f"{numbers.mean:.6g}",
        shown.at_floor,
        _interval(numbers.mean, numbers.sd, n, digits),
        _rate(cell.selected),
        _seeds(cell, digits),
    )


def _interval(mean: float, sd: float | None, n: int, digits: int) -> str:
    """Return the 95% interval of the mean over seeds, by Student's t."""
    if sd is None:
        return "none: one seed"
    low, high = Estimate(mean, sd / math.sqrt(n), n - 1).interval()
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _rate(best: Candidate | None) -> str:
    if best is None or best.lr is None:
        return ""
    return " ".join([format_lr(best.lr), *(text.rpartition(".")[2] for text in best.overrides)])


def _seeds(cell: ResolvedCell, digits: int) -> list[Seed]:
    seeds = []
    for config, result in cell.results:
        value, error = cell.measured(config, result) or (math.nan, None)
        beside = "" if error is None else f" ± {error:.{digits}f}"
        shown = "diverged" if result.status == "diverged" else f"{value:.{digits}f}{beside}"
        seeds.append(Seed(config.seed, shown, run_id(config)))
    return seeds
