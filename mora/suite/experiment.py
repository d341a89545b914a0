"""Experiments: the data in experiments/*.yaml as rows, and rows as the runs they need."""

from __future__ import annotations

from typing import Any, Literal

import yaml

from mora.config import RunConfig, compose
from mora.config.schema import Section
from mora.config.source import ROOT

from .launch import result_of

FOLDER = ROOT / "experiments"


class Row(Section):
    """A line of a table or a curve of a figure."""

    method: str
    r: int | None = None
    operator: str | None = None

    def overrides(self) -> list[str]:
        chosen = [f"method={self.method}"]
        if self.r is not None:
            chosen.append(f"r={self.r}")
        if self.operator is not None:
            chosen.append(f"method.adapter.operator={self.operator}")
        return chosen


class AtScale(Section):
    seeds: list[int]
    rows: list[Row]
    steps: list[int] = []
    search: list[str] = []


class Experiment(Section):
    title: str
    kind: Literal["table", "figure"]
    task: str
    metric: str
    selection: str
    scales: dict[Literal["paper", "lite", "smoke"], AtScale]
    paper: str | None = None


def load(name: str) -> Experiment:
    """Raises: FileNotFoundError that lists the experiments there are."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment {name!r}; there are {', '.join(names())}")
    return Experiment.model_validate(yaml.safe_load(path.read_text()))


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def last_step(config: RunConfig, result: dict[str, Any]) -> int:
    """Where the run ended: from its configuration, or where that follows from the data, from its result."""
    return config.last_step if config.knows_steps else result["last_step"]


class Grid:
    """The runs behind one row of an experiment at one scale."""

    def __init__(self, experiment: Experiment, scale: str, row: Row):
        self.experiment, self.scale, self.row = experiment, scale, row
        self.at_scale = experiment.scales[scale]  # type: ignore[index]
        self.base = [f"task={experiment.task}", f"scale={scale}", *row.overrides()]

    def search(self) -> list[RunConfig]:
        """One run a learning rate of the grid, on the first seed; none where there is nothing to choose."""
        grid = self.config().lr_grid()
        if len(grid) < 2:
            return []
        return [self.config(f"lr={lr}", f"seed={self.at_scale.seeds[0]}", *self.at_scale.search) for lr in grid]

    def best_lr(self) -> float | None:
        """The rate with the lowest selection metric at the search's last step; None while the search is not complete.

        A diverged run counts as the worst.
        """
        runs = self.search()
        if not runs:
            return self.config().lr
        results = [result_of(config) for config in runs]
        scores = {}
        for config, result in zip(runs, results, strict=True):
            if result is None:
                return None
            if result["status"] == "done":
                scores[config.lr] = result["metrics"][str(last_step(config, result))][self.experiment.selection]
        return min(scores, key=scores.__getitem__) if scores else None

    def final(self) -> list[RunConfig]:
        """The runs that enter the row, one a seed; none until the rate is chosen."""
        lr = self.best_lr()
        if lr is None and self.config().method.trains:
            return []
        rate = [] if lr is None else [f"lr={lr}"]
        return [self.config(*rate, f"seed={seed}") for seed in self.at_scale.seeds]

    def label(self) -> str:
        config = self.config()
        name = {"fft": "FFT", "lora": "LoRA", "mora": "MoRA", "none": "untuned"}[self.row.method]
        if config.r is not None:
            stands_for = f" (as {config.r * config.model.rank_scale})" if config.model.rank_scale > 1 else ""
            name += f" r={config.r}{stands_for}"
        return name + (f", {self.row.operator}" if self.row.operator else "")

    def paper_values(self) -> list[float | None] | None:
        """The row of the paper's table that this row answers, if there is one."""
        if self.experiment.paper is None or self.row.operator is not None:
            return None
        config = self.config()
        rank = (self.row.r or 0) * config.model.rank_scale
        table: dict[str, Any] = yaml.safe_load((ROOT / "results/paper/tables.yaml").read_text())[self.experiment.paper]
        for row in table["rows"]:
            if row["method"] == self.row.method and row["r"] == rank:
                return row["values"]
        return None

    def config(self, *more: str) -> RunConfig:
        return compose([*self.base, *more])
