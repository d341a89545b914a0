"""The cells of an experiment, and the runs that each cell needs. No result is read here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple

from mora.config import RunConfig
from mora.config.cached_composition import compose_cached
from mora.config.hardware_schema import ScaleName
from mora.config.source import ROOT
from mora.config.yaml_file import read_yaml

from .column_check import check_column
from .experiments import AtScale, Column, Experiment, Row, paper_tables

SWEEPS = ROOT / "configs" / "sweep"
METHOD_NAMES = {
    "none": "untuned",
    "fft": "FFT",
    "lora": "LoRA",
    "lora_plus": "LoRA+",
    "relora": "ReLoRA",
    "asylora": "AsyLoRA",
    "dora": "DoRA",
    "mora": "MoRA",
    "remora": "ReMoRA",
}


def cell_specs(experiment: Experiment, scale: ScaleName, seeds: list[int] | None = None) -> list[list[CellSpec]]:
    """Return the cells row by row. A cell that its row leaves out has `exists` False.

    `seeds`, if given, replace those of the experiment, including those of single rows.
    """
    if scale not in experiment.scales:
        return []
    at = experiment.scales[scale]
    if seeds:
        rows = [row.model_copy(update={"more_seeds": {}}) for row in at.rows]
        at = at.model_copy(update={"seeds": seeds, "rows": rows})
    columns = at.columns or experiment.columns
    return [[CellSpec(experiment, scale, at, row, column) for column in columns] for row in at.rows]


class Candidate(NamedTuple):
    """One point of a search."""

    overrides: tuple[str, ...]
    lr: float | None


@dataclass(frozen=True)
class CellSpec:
    """One cell of an experiment at one scale, and the runs that it needs. `cells.resolve` finds which of them were made."""

    experiment: Experiment
    scale: ScaleName
    at_scale: AtScale
    row: Row
    column: Column

    @cached_property
    def base(self) -> list[str]:
        """The overrides that all runs of the cell share."""
        row, column = self.row, self.column
        shared = row.model_copy(update={"operator": None}) if row.operator == column.auto else row
        return [f"task={column.task}", f"scale={self.scale}", *shared.overrides(), *column.overrides]

    @cached_property
    def searched(self) -> CellSpec:
        """The cell whose search gives the rate: this one, or the one of the same row without its settings."""
        if not self.row.rate_without_settings:
            return self
        return replace(self, row=self.row.model_copy(update={"settings": [], "rate_without_settings": False}))

    @property
    def exists(self) -> bool:
        named = self.row.columns is None or self.column.name in self.row.columns
        return named and self.column.task not in self.row.without

    @cached_property
    def config(self) -> RunConfig:
        """The run with the middle rate of the grid and seed 0. Raises ConfigError if it does not measure what is shown."""
        config = compose_cached(self.base)
        if self.exists:
            check_column(self.experiment, self.column, config, self.base)
        return config

    @cached_property
    def search_space(self) -> list[Candidate]:
        """All candidates of the search: every learning rate, with `sweep: method` for all settings of the method."""
        settings = method_sweep(self.row.method) if self.at_scale.sweep == "method" else {}
        chosen = list(product(*([f"{key}={value}" for value in values] for key, values in settings.items())))
        rates: list[float | None] = [*self.row.rates.get(self.column.name, self.config.lr_grid())] or [None]
        return [Candidate(overrides, lr) for overrides in chosen for lr in rates]

    @cached_property
    def search_runs(self) -> list[RunConfig]:
        """One run per candidate, on the first seed; none if there is nothing to choose."""
        if not self.exists or len(self.search_space) < 2:
            return []
        return [self.run(c, self.at_scale.seeds[0], searching=True) for c in self.search_space]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the final runs; only the first if nothing is trained, since a seed then changes nothing."""
        if not self.config.method.trains:
            return self.at_scale.seeds[:1]
        return [*self.at_scale.seeds, *self.row.more_seeds.get(self.column.task, [])]

    def run(self, candidate: Candidate, seed: int, searching: bool = False) -> RunConfig:
        more = [*candidate.overrides, *(self.at_scale.search if searching else [])]
        base = self.searched.base if searching else self.base
        return compose_cached([*base, *more]).model_copy(update={"lr": candidate.lr, "seed": seed})

    @cached_property
    def label(self) -> str:
        name = METHOD_NAMES.get(self.row.method) or self.config.method.label
        if self.row.r is not None:
            name += f" {self.config.model.rank_text(self.row.r)}"
        more = [self.row.operator] if self.row.operator else []
        # Not method.config=FILE: the method's name, which the label begins with, comes from that file.
        shown = (setting for setting in self.row.settings if not setting.startswith("method.config="))
        more += [key.rpartition(".")[2] + "=" + value for key, _, value in (text.partition("=") for text in shown)]
        return ", ".join([name, *more])

    @property
    def curve_label(self) -> str:
        return self.row.called or self.label

    @cached_property
    def heading(self) -> str:
        """The name of the column, with the rank that stands for its rank here, if that is another: `r8 (here 4)`."""
        r = self.config.r if any(override.startswith("r=") for override in self.column.overrides) else None
        same = r is None or self.config.model.stands_for(r) == r
        return self.column.name if same else f"{self.column.name} (here {r})"

    @cached_property
    def paper_value(self) -> float | None:
        """The paper's number for this cell, if it prints one. Scale smoke is never compared with the paper."""
        if self.experiment.paper is None or self.scale == "smoke":
            return None
        table = paper_tables()[self.experiment.paper]
        if self.column.name not in table["columns"]:
            return None
        rank = 0 if self.row.r is None else self.config.model.stands_for(self.row.r)
        for row in table["rows"]:
            if "operator" in row:
                same = row["operator"] == self.row.operator
            else:
                same = (row["method"], row["r"]) == (self.row.method, rank) and self.row.operator is None
            if same:
                return row["values"][table["columns"].index(self.column.name)]
        return None


def method_sweep(method: str) -> dict[str, list[str]]:
    """Return what the paper searched beside the learning rate, from configs/sweep/<method>.yaml, which Hydra reads, too."""
    path = SWEEPS / f"{method}.yaml"
    if not path.is_file():
        return {}
    values = read_yaml(path)
    return {key: str(value).split(",") for key, value in values.items() if key not in ("defaults", "lr")}
