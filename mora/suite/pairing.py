"""The error of a difference over documents that both rows scored, from the scores in results/documents."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from mora.config import RunConfig
from mora.config.run_id import documents_path
from mora.evaluate import documents
from mora.evaluate.aggregate import bootstrap, standard_error
from mora.evaluate.logged import LoggedSamples
from mora.evaluate.metrics import members

from .cells import CellRuns
from .claims import Unit


def error(first: list[CellRuns], second: list[CellRuns], seeds: list[int], unit: Unit) -> float | None:
    """Return the standard error of the mean difference over columns and seeds, in the claim's unit.

    Only seeds whose document scores were saved take part. None if there is no such seed, if the two rows scored
    different documents, or if a column shows an earlier step. Columns, and the tasks of a group, count as independent.
    """
    columns: list[float] = []
    for a, b in zip(first, second, strict=True):
        if a.spec.column.step is not None:
            return None
        tasks = members(a.spec.column.metric.removesuffix(".score"))
        errors = [_of_task(_logged(a, seeds, task), _logged(b, seeds, task), unit) for task in tasks]
        known = [e for e in errors if e is not None]
        if len(known) < len(errors):
            return None
        columns.append(math.hypot(*known) / len(known))
    return math.hypot(*columns) / len(columns) if columns else None


def _of_task(first: list[LoggedSamples | None], second: list[LoggedSamples | None], unit: Unit) -> float | None:
    """Return the standard error over documents of the difference, averaged over seeds."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs or any(a.header["prompts"] != b.header["prompts"] for a, b in pairs):
        return None
    kind, clusters = pairs[0][0].header["aggregation"], [row["cluster"] for row in pairs[0][0].rows]
    clustered = None if clusters[0] is None else clusters
    if kind == "mean":
        items = np.mean([np.subtract(_items(a), _items(b)) for a, b in pairs], axis=0)
        return _scale(unit) * standard_error(kind, items.tolist(), clustered)
    drawn = [[bootstrap(kind, _items(logged), clustered) for logged in pair] for pair in pairs]
    transform = np.log if unit == "nats" else np.asarray
    differences = np.mean([transform(a) - transform(b) for a, b in drawn], axis=0)
    return _scale(unit) * float(np.std(differences, ddof=1))


def _scale(unit: Unit) -> float:
    return 100.0 if unit == "points" else 1.0


def _items(logged: LoggedSamples) -> list:
    items = [row[logged.header["headline"]] for row in logged.rows]
    return [tuple(item) if isinstance(item, list) else item for item in items]


def _logged(runs: CellRuns, seeds: list[int], task: str) -> list[LoggedSamples | None]:
    by_seed = {config.seed: config for config, _ in runs.results}
    return [_of_run(by_seed[seed]).get(task) for seed in seeds]


def _of_run(config: RunConfig) -> dict[str, LoggedSamples]:
    path = documents_path(config)
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> dict[str, LoggedSamples]:
    return documents.read(path)
