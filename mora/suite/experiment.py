"""Experiments: experiments/*.yaml as rows and columns, and the runs that each cell needs. No result is read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from mora.config import ConfigError, RunConfig
from mora.config.cached_composition import compose_cached
from mora.config.hardware_schema import ScaleName as Scale
from mora.config.load import described
from mora.config.source import ROOT
from mora.config.yaml_file import read_yaml
from mora.errors import did_you_mean, nearest, one_line
from mora.frozen import FrozenModel

from .column_check import check_column

FOLDER = ROOT / "experiments"
PAPER = ROOT / "results" / "paper" / "tables.yaml"
SWEEPS = ROOT / "configs" / "sweep"
# The runs of a short search have a third of the steps, keep their restarts, and are not scored.
SHORT_SEARCH = ("task.train.shorten_by=3", "task.evaluation.tasks=[]")

# What no override may set, and the field that sets it.
OWN_FIELDS = {
    "task": "the column's task", "scale": "a scale of the experiment", "method": "the row's method", "r": "the row's r",
    "lr": "the row's rates", "seed": "the seeds of the scale",
}  # fmt: skip

NAMES = {
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


class Row(FrozenModel):
    """A line of a table or a curve of a figure.

    Attributes:
        settings: More overrides. The row's label names them.
        without: The tasks for which the paper prints a dash in this row.
        columns: The names of the row's columns, if it does not have all.
        rates: By column, the learning rates that are searched instead of the task's grid.
        rate_without_settings: The row has no search of its own: it takes the rate that was chosen for the same row without
            its settings, so that nothing else differs.
        more_seeds: By task, the seeds of final runs beside those of the scale.
        called: The curve's name in the legend of a figure.
    """

    method: str
    r: int | None = None
    operator: str | None = None
    settings: list[str] = []
    without: list[str] = []
    columns: list[str] | None = None
    rates: dict[str, list[float]] = {}
    rate_without_settings: bool = False
    more_seeds: dict[str, list[int]] = {}
    called: str | None = None

    def overrides(self) -> list[str]:
        chosen = [f"method={self.method}"]
        if self.r is not None:
            chosen.append(f"r={self.r}")
        if self.operator is not None:
            chosen.append(f"method.adapter.operator={self.operator}")
        return chosen + self.settings


class Column(FrozenModel):
    """What a table's column, or a figure's panel, reads from a run: a metric at a step (None is the last step).

    A column with the name of one of the paper's columns is compared with the paper's numbers; any other is not.
    Differences between rows are compared with the differences in those columns of the paper that it `stands_for`. `auto`
    is the operator that operator=auto resolves to here: a row of that operator shares the runs of other tables.
    """

    name: str
    task: str
    metric: str
    step: int | None = None
    overrides: list[str] = []
    auto: str | None = None
    stands_for: list[str] = []

    @property
    def scored_task(self) -> str:
        return self.metric.removesuffix(".score")


class AtScale(FrozenModel):
    """An experiment at one scale.

    Attributes:
        seeds: The seeds of the final runs. Search runs have the first.
        rows: Methods and ranks.
        columns: If given, they replace the experiment's.
        search: Overrides of the search runs alone; `short` stands for SHORT_SEARCH.
        sweep: What is searched: the learning rate, or everything that the paper searched for the method.
        repeats: Before the final runs, if the best learning rate is at the edge of the search, the next rate is added;
            then the best two get a second seed.
    """

    seeds: list[int] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    columns: list[Column] | None = None
    search: list[str] = []
    sweep: Literal["lr", "method"] = "lr"
    repeats: bool = False

    @model_validator(mode="after")
    def _no_seed_twice(self) -> AtScale:
        """Refuse a seed that is named twice, whose run would count twice."""
        for row in self.rows:
            for seeds in row.more_seeds.values() or [[]]:
                if twice := [seed for seed, n in Counter([*self.seeds, *seeds]).items() if n > 1]:
                    raise ValueError(f"seeds, a row of method {row.method}: seed {twice[0]} is named twice")
        return self

    @field_validator("search", mode="before")
    @classmethod
    def _written_out(cls, search: Any) -> Any:
        return list(SHORT_SEARCH) if search == "short" else search


class Reach(FrozenModel):
    """A level of a metric that grows. A table gives the step at which each run reached it."""

    metric: str
    at_least: float


class Experiment(FrozenModel):
    """A file of experiments/.

    Attributes:
        selection: The loss that chooses among the runs of a search.
        unit: The unit of the table's cells.
        notes: The first words of each of the paper's inconsistencies that concern this experiment.
        minus_first: For kind figure: each curve is its loss minus that of the panel's first row, at the same step and seed.
        table: For kind figure: the table of the same runs, whose numbers the caption gives beside the losses.
        settings: For kind settings: by the name of a hyperparameter in the paper's table, its place in a configuration.
    """

    title: str
    kind: Literal["table", "figure", "spectrum", "settings", "memory"]
    unit: Literal["percent", "perplexity", "loss"] = "percent"
    paper: str | None = None
    selection: Literal["validation_loss", "value_nll"] = "validation_loss"
    columns: list[Column] = []
    scales: dict[Scale, AtScale] = {}
    notes: list[str] = []
    reach: Reach | None = None
    minus_first: bool = False
    table: str | None = None
    settings: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_overrides(self) -> Experiment:
        """Refuse an override of what the experiment itself decides: the suite would run, or name, another cell."""
        for scale, at in self.scales.items():
            given = [(f"a row of method {row.method}: settings", row.settings, set(OWN_FIELDS)) for row in at.rows]
            for column in at.columns or self.columns:
                given.append((f"column {column.name}: overrides", column.overrides, set(OWN_FIELDS) - {"r"}))
            for where, overrides, own in [*given, ("search", at.search, set(OWN_FIELDS))]:
                for override in overrides:
                    if (key := override.lstrip("+").partition("=")[0]) in own:
                        raise ValueError(f"scale {scale}, {where}: {override}: give it as {OWN_FIELDS[key]}")
        return self

    @model_validator(mode="after")
    def _check_rows(self) -> Experiment:
        """Refuse a row with a field that names a column or task that does not exist; the name would have no effect."""
        for scale, at in self.scales.items():
            columns = at.columns or self.columns
            names, tasks = {column.name for column in columns}, {column.task for column in columns}
            for row in at.rows:
                fields: tuple[tuple[str, Iterable[str], set[str]], ...] = (
                    ("rates", row.rates, names),
                    ("columns", row.columns or (), names),
                    ("without", row.without, tasks),
                    ("more_seeds", row.more_seeds, tasks),
                )
                for field, given, there in fields:
                    if unknown := [name for name in given if name not in there]:
                        what = "column" if there is names else "task"
                        raise ValueError(
                            f"scale {scale}, a row of method {row.method}: {field}: there is no {what} {unknown[0]!r}; "
                            f"there are {', '.join(sorted(there))}"
                        )
        return self

    def has(self, scale: Scale) -> bool:
        """Return whether there is something to show at the scale."""
        return scale in self.scales or (self.kind == "settings" and scale == "paper")


def load(name: str) -> Experiment:
    """Read experiments/<name>.yaml.

    Raises:
        FileNotFoundError: There is no such experiment; the message lists those that exist.
        ConfigError: The file is not an experiment.
    """
    if name not in names():
        meant = did_you_mean(nearest(name, names()))
        raise FileNotFoundError(f"there is no experiment {name!r}; there are {', '.join(names())}{meant}")
    try:
        values = read_yaml(FOLDER / f"{name}.yaml")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"experiments/{name}.yaml cannot be read: {one_line(error):.300}") from error
    return checked(name, values)


def checked(name: str, values: Any) -> Experiment:
    """Validate the values of an experiment's file.

    Raises:
        ConfigError: Some fields are wrong; the message names each of them.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"experiments/{name}.yaml: {described(error, values)}") from error


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "claims")


def number_of(experiment: str) -> str:
    """Return the experiment's name with its number, or with what it is about: `Table 2`, `Memory`, `Figure: restarts`."""
    kind, _, about = experiment.partition("_")
    head = kind.rstrip("0123456789")
    return f"{head.capitalize()} {kind[len(head) :]}".strip() + (f": {about}" if about else "")


@lru_cache
def paper_tables() -> dict[str, Any]:
    return read_yaml(PAPER)


def cell_specs(experiment: Experiment, scale: Scale, seeds: list[int] | None = None) -> list[list[CellSpec]]:
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
    scale: Scale
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
        name = NAMES.get(self.row.method) or self.config.method.label
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
