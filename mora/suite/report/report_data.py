"""The content of the report: every experiment at every scale, resolved once, and every run with its uses."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mora import digests
from mora.config import RunConfig
from mora.config.hardware_schema import ScaleName
from mora.config.run_id import run_id
from mora.config.source import ROOT
from mora.errors import DataError, MoraError
from mora.evaluate import documents
from mora.results import STORE, RunResult, read_spectrum

from .. import claims, commands, experiments
from ..cell_specs import CellSpec
from ..cells import PlannedRun, ResolvedCell
from ..contrasts import ResolvedTables
from ..experiments import Experiment, number_of
from ..selection import last_step
from ..usable import log_of, reportable, result_of


class Use(NamedTuple):
    """The use of a run in a cell: as a final run or in the search."""

    name: str
    scale: ScaleName
    label: str
    column: str
    searching: bool

    @property
    def number(self) -> str:
        return number_of(self.name)


class Point(NamedTuple):
    """A point of a curve: a step and a loss."""

    step: int
    value: float


@dataclass
class Run:
    """A run that a table, a figure or a search uses. `overrides` are its arguments of run.py."""

    config: RunConfig
    result: RunResult
    label: str
    overrides: list[str]
    uses: list[Use] = field(default_factory=list)

    @property
    def name(self) -> str:
        return run_id(self.config)

    @property
    def command(self) -> str:
        return shlex.join(["python", "run.py", *self.overrides])

    @property
    def searching(self) -> bool:
        return all(use.searching for use in self.uses)

    @cached_property
    def log(self) -> list[dict[str, float]] | str:
        """The rows of the log; if it is damaged, a text that says why it cannot be read."""
        try:
            return log_of(self.config, self.result)
        except MoraError as error:
            return str(error).replace(f"{ROOT}/", "")

    @cached_property
    def training(self) -> list[Point]:
        """The training loss at every step."""
        rows = [] if isinstance(self.log, str) else self.log
        return [Point(int(row["step"]), float(row["loss"])) for row in rows if _finite(row.get("loss"))]

    @cached_property
    def held_out(self) -> list[Point]:
        """The loss on held-out documents."""
        losses = [(step, m.get("validation_loss")) for step, m in sorted(self.result.metrics.items())]
        return [Point(step, metric.value) for step, metric in losses if metric is not None and metric.finite]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass
class ShownExperiment:
    """An experiment at a scale."""

    name: str
    scale: ScaleName
    experiment: Experiment
    rows: list[list[ResolvedCell]]

    @property
    def kind(self) -> str:
        return self.experiment.kind

    @property
    def number(self) -> str:
        return number_of(self.name)

    @property
    def cells(self) -> Iterator[ResolvedCell]:
        return (cell for row in self.rows for cell in row if cell.spec.exists)

    @property
    def measured(self) -> bool:
        return any(cell.results for cell in self.cells)


class Gathered:
    """Everything at some scales. `damaged` says, by file name, why a file is left out."""

    def __init__(self, scales: Iterable[ScaleName] = claims.COMPARED) -> None:
        self.scales = tuple(scales)
        folders = {
            ROOT / "results" / "runs",
            *([ROOT / "outputs" / "smoke" / "runs"] if "smoke" in self.scales else []),
        }
        self.damaged = {
            name: why for folder in sorted(folders) for name, why in STORE.leave_out_damaged(folder).items()
        }
        for folder in sorted(folders):
            self.damaged |= _without_evidence(folder)
        self.resolved = ResolvedTables()
        self.shown = [
            ShownExperiment(name, scale, experiment, self.resolved.rows(name, scale))
            for name in experiments.names()
            for experiment in [experiments.load(name)]
            for scale in self.scales
            if experiment.has(scale)
        ]
        self._folders = sorted(folders)
        self.runs: dict[str, Run] = {}
        for shown in self.shown:
            for cell in shown.cells:
                self._add(shown, cell)
        self.damaged |= {f"{name}.log.jsonl": run.log for name, run in self.runs.items() if isinstance(run.log, str)}

    @property
    def unused(self) -> list[str]:
        """The results that nothing uses, since no experiment has their searches or settings any more."""
        there = [path.stem for folder in self._folders for path in sorted(folder.glob("*.json"))]
        return [name for name in there if name not in self.runs and f"{name}.json" not in self.damaged]

    def of_kind(self, *kinds: str) -> list[ShownExperiment]:
        return [shown for shown in self.shown if shown.kind in kinds]

    def _add(self, shown: ShownExperiment, cell: ResolvedCell) -> None:
        scale = cell.spec.scale
        for searching, runs in ((False, cell.planned_final_runs), (True, cell.planned_search_runs)):
            for run in runs:
                if (result := reportable(result_of(run.config), scale)) is not None:
                    self._use(shown, cell.spec, run, result, searching)

    def _use(
        self,
        shown: ShownExperiment,
        spec: CellSpec,
        planned: PlannedRun,
        result: RunResult,
        searching: bool,
    ) -> None:
        new = Run(planned.config, result, spec.label, commands.words(*planned))
        run = self.runs.setdefault(run_id(planned.config), new)
        use = Use(shown.name, shown.scale, spec.label, spec.column.name, searching)
        if use not in run.uses:
            run.uses.append(use)


def _without_evidence(folder: Path) -> dict[str, str]:
    """Leave out results whose document scores or spectrum are damaged, since claims rest on these.

    Returns:
        The reasons, by file name.
    """
    damaged = {}
    for kind, pattern in (("documents", "*.jsonl.zst"), ("spectra", "*.json")):
        for path in sorted((folder.parent / kind).glob(pattern)):
            try:
                if kind == "documents":
                    digests.check(path)
                    documents.read(path)
                else:
                    read_spectrum(path)
            except (DataError, ValueError) as error:
                result = f"{path.name.partition('.json')[0]}.json"
                STORE.leave_out(folder / result)
                damaged[result] = f"{kind}/{path.name} is damaged: {error}".replace(f"{folder.parent}/", "")
    return damaged


def end(run: Run) -> int:
    """Return the run's last step."""
    return last_step(run.config, run.result)
