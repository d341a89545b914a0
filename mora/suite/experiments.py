"""Experiments: the files of experiments/, as rows and columns. `cell_specs` expands them into runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from mora.config import ConfigError
from mora.config.hardware_schema import ScaleName
from mora.config.load import described
from mora.config.source import ROOT
from mora.config.yaml_file import read_yaml
from mora.errors import did_you_mean, nearest, one_line
from mora.frozen import FrozenModel

FOLDER = ROOT / "experiments"
PAPER = ROOT / "results" / "paper" / "tables.yaml"
# The runs of a short search have a third of the steps, keep their restarts and are not scored.
SHORT_SEARCH = ("task.train.shorten_by=3", "task.evaluation.tasks=[]")
NO_MODEL = "hardware.save_model=false"

# What no override may set, and the field that sets it.
OWN_FIELDS = {
    "task": "the column's task", "scale": "a scale of the experiment", "method": "the row's method", "r": "the row's r",
    "lr": "the row's rates", "seed": "the seeds of the scale",
}  # fmt: skip


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
        search: Overrides of the search runs alone; `short` stands for SHORT_SEARCH. If there are any, NO_MODEL is added.
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

    @field_validator("search")
    @classmethod
    def _leaves_no_model(cls, search: list[str]) -> list[str]:
        """Add NO_MODEL. Search runs without overrides of their own are final runs, whose models are left."""
        return [*search, NO_MODEL] if search and NO_MODEL not in search else search


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
    scales: dict[ScaleName, AtScale] = {}
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

    def has(self, scale: ScaleName) -> bool:
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
