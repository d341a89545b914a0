"""Select cells by task, method, rank and operator, as `--only` and the lines of a queue name them."""

from __future__ import annotations

import re
from collections.abc import Callable

from mora.config import ConfigError, RunConfig
from mora.errors import did_you_mean, nearest
from mora.models.shapes import UnknownShape
from mora.planner.counts import operator_of

from .cell_specs import CellSpec


def filter_cells(cells: list[CellSpec], filters: list[str]) -> list[CellSpec]:
    """Return the cells that pass every filter.

    Args:
        cells: The cells to choose from.
        filters: Each is `task=`, `method=`, `r=` or `operator=`, followed by values separated by commas.

    Raises:
        ConfigError: A filter has another key, or a value that no cell has.
    """
    for text in filters:
        key, _, values = text.partition("=")
        if key not in FILTERS or not values:
            raise ConfigError(f"--only {text}: expected {', '.join(f'{known}=VALUE,...' for known in FILTERS)}")
        if "=" in values:
            raise ConfigError(f"--only {text}: conditions stand apart: --only {' '.join(_apart(text))}")
        there = {str(has): None for cell in cells if (has := FILTERS[key](cell)) is not None}
        if unknown := [value for value in values.split(",") if value not in there]:
            hint = _stands_for(cells, unknown[0]) if key == "r" else did_you_mean(nearest(unknown[0], there))
            raise ConfigError(f"--only {text}: no cell has {key}={unknown[0]}; there are {', '.join(there)}{hint}")
    chosen = [(FILTERS[key], values.split(",")) for key, _, values in (text.partition("=") for text in filters)]
    return [cell for cell in cells if all(str(value(cell)) in values for value, values in chosen)]


def _apart(text: str) -> list[str]:
    """Split conditions: task=uuid,c4,method=lora -> task=uuid,c4 and method=lora."""
    return re.split(rf",(?=(?:{'|'.join(FILTERS)})=)", text)


def _stands_for(cells: list[CellSpec], r: str) -> str:
    """Return a hint that names the rank of these cells that stands for the paper's rank `r`; empty if none does."""
    ranks = {(rank, str(cell.config.model.stands_for(int(rank)))) for cell in cells if (rank := FILTERS["r"](cell))}
    ours = sorted((str(rank) for rank, paper in ranks if paper == r), key=int)
    return f"; the paper's r={r} is r={ours[0]} here" if ours else ""


def _operator(config: RunConfig) -> str | None:
    """Return the run's operator, with "auto" resolved unless the width that decides it is known only from the weights."""
    named = getattr(config.method.adapter, "operator", None)
    try:
        return operator_of(config) if named == "auto" else named
    except UnknownShape:
        return named


FILTERS: dict[str, Callable[[CellSpec], str | int | None]] = {
    "task": lambda cell: cell.column.task,
    "method": lambda cell: cell.row.method,
    "r": lambda cell: dict(text.split("=", 1) for text in cell.base).get("r"),  # of the row; in Table 4, of the column
    "operator": lambda cell: _operator(cell.config),
}
