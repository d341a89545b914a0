"""The error of a difference between two rows over the documents that both scored, from results/documents."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mora import digests
from mora.config import RunConfig
from mora.config.run_id import documents_path
from mora.evaluate import documents
from mora.evaluate.aggregate import bootstrap, standard_error
from mora.evaluate.logged import LoggedSamples
from mora.evaluate.metrics import documents_of, members

from .cells import ResolvedCell
from .claims import Unit


class Part(NamedTuple):
    """A task's share of the mean over columns, and what both rows scored on it, one pair per seed."""

    share: float
    pairs: list[tuple[LoggedSamples, LoggedSamples]]

    @property
    def kind(self) -> str:
        return str(self.pairs[0][0].header["aggregation"])

    @property
    def clusters(self) -> list[str] | None:
        clusters = [row["cluster"] for row in self.pairs[0][0].rows]
        return None if clusters[0] is None else clusters


def error(first: list[ResolvedCell], second: list[ResolvedCell], seeds: list[int], unit: Unit) -> float | None:
    """Return the standard error of the mean difference over columns and seeds, in the claim's unit.

    Only seeds whose document scores were saved take part. The error is None if there is no such seed, if two rows or two
    seeds scored different documents, or if a column shows a step before the last. Tasks on the same documents (MMLU with
    0 and with 5 examples) are added document by document; other columns, and the tasks of a group, count as independent.
    """
    sets: dict[tuple[str, int], list[Part]] = {}
    for a, b in zip(first, second, strict=True):
        if a.spec.column.step is not None:
            return None
        tasks = members(a.spec.column.scored_task)
        for task in tasks:
            pairs = _pairs(_logged(a, seeds, task), _logged(b, seeds, task))
            if not pairs:
                return None
            part = Part(1 / len(first) / len(tasks), pairs)
            sets.setdefault((documents_of(task), len(pairs[0][0].rows)), []).append(part)
    return math.hypot(*(_of_set(parts, unit) for parts in sets.values())) if sets else None


def _pairs(
    first: list[LoggedSamples | None], second: list[LoggedSamples | None]
) -> list[tuple[LoggedSamples, LoggedSamples]]:
    """Return the pairs of the seeds that both rows have; none if not all of them are of the same documents."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return [] if len({logged.header["prompts"] for pair in pairs for logged in pair}) > 1 else pairs


def _of_set(parts: list[Part], unit: Unit) -> float:
    """Return the standard error, over one set of documents, of what its tasks contribute to the mean difference."""
    if any(part.kind != "mean" for part in parts):
        return math.hypot(*(part.share * _bootstrapped(part, unit) for part in parts))
    items = sum(part.share * _mean_difference(part) for part in parts)
    return _scale(unit) * standard_error("mean", np.asarray(items).tolist(), parts[0].clusters)


def _mean_difference(part: Part) -> np.ndarray:
    """Return the difference of each document's score, averaged over seeds, as an array of shape (documents,)."""
    return np.mean([np.subtract(_items(a), _items(b)) for a, b in part.pairs], axis=0)


def _bootstrapped(part: Part, unit: Unit) -> float:
    """Return the standard error, over documents, of the difference of two scores that are not means over documents."""
    drawn = [[bootstrap(part.kind, _items(logged), part.clusters) for logged in pair] for pair in part.pairs]
    transform = np.log if unit == "nats" else np.asarray
    differences = np.mean([transform(a) - transform(b) for a, b in drawn], axis=0)
    return _scale(unit) * float(np.std(differences, ddof=1))


def _scale(unit: Unit) -> float:
    return 100.0 if unit == "points" else 1.0


def _items(logged: LoggedSamples) -> list:
    items = [row[logged.header["headline"]] for row in logged.rows]
    return [tuple(item) if isinstance(item, list) else item for item in items]


def _logged(cell: ResolvedCell, seeds: list[int], task: str) -> list[LoggedSamples | None]:
    by_seed = {config.seed: config for config, _ in cell.results}
    return [_of_run(by_seed[seed]).get(task) for seed in seeds]


def _of_run(config: RunConfig) -> dict[str, LoggedSamples]:
    """Return the documents' scores by task; none if there is no file. Raises DamagedFileError if it is another run's."""
    path = documents_path(config)
    if not path.is_file():
        return {}
    digests.check(path)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> dict[str, LoggedSamples]:
    return documents.read(path)
