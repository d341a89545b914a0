"""The paper's hyperparameter table beside ours: each of our values is composed from configs/ at scale paper, not copied."""

from __future__ import annotations

import csv
import io
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from mora.config.cached_composition import compose_cached
from mora.io import replace_file
from mora.planner.counts import operator_of

from . import latex
from .experiments import Experiment, paper_tables

LORA_LIKE = ("lora", "lora_plus", "relora", "asylora", "dora")


class Line(NamedTuple):
    """One value of the paper's table and ours. `what` is the table's text for it."""

    what: str
    paper: Any
    ours: Any


def lines(experiment: Experiment) -> list[Line]:
    """Return every value that the table prints, in its order."""
    table = paper_tables()[experiment.paper or ""]
    compared = []
    for task in (name for name, values in table.items() if isinstance(values, dict) and "scheduler" in values):
        config = compose_cached([f"task={task}", "method=fft", "scale=paper"])
        compared += [
            Line(f"{task}: {name}", table[task][name], attrgetter(path)(config))
            for name, path in experiment.settings.items()
        ]
    for task, grids in table["lr"].items():
        compared.append(Line(f"{task}: lr fft", grids["fft"], compose_cached([f"task={task}", "method=fft"]).lr_grid()))
        for methods, family in ((LORA_LIKE, "lora_like"), (("mora",), "mora")):
            for r, rates in grids[family].items():
                for method in methods:
                    config = compose_cached([f"task={task}", f"method={method}", f"r={r}"])
                    compared.append(Line(f"{task}: lr {method} r={r}", rates, config.lr_grid()))
    for task, (r, operator) in product(table["lr"], table["mora_operator"].items()):
        config = compose_cached([f"task={task}", "method=mora", f"r={r}"])
        compared.append(Line(f"{task}: operator r={r}", operator, operator_of(config)))
    for r, alpha in table["lora_alpha"].items():
        config = compose_cached(["task=metamath", "method=lora", f"r={r}"])
        compared.append(Line(f"lora_alpha r={r}", alpha, config.lora_alpha()))
    return compared


def render(name: str, experiment: Experiment, folder: Path) -> Path:
    """Write `folder/<name>-paper.md`, `.tex` and `.csv`; return the path of the Markdown."""
    rows = [
        [line.what, _plain(line.paper), _plain(line.ours), "" if line.paper == line.ours else "differs"]
        for line in lines(experiment)
    ]
    markdown = [f"# {experiment.title}", "", "| setting | paper | configs/ | |", "|---|---|---|---|"]
    markdown += [f"| {' | '.join(row)} |" for row in rows]
    head, cells = ["setting", "paper", "configs/", ""], [[latex.escape(text) for text in row] for row in rows]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["setting", "paper", "configs", "differs"], *rows])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-paper.md"
    replace_file(path, "\n".join(markdown) + "\n")
    replace_file(path.with_suffix(".tex"), latex.table([f"{experiment.title}."], "llll", head, cells))
    replace_file(path.with_suffix(".csv"), table.getvalue())
    return path


def _plain(value: Any) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)
