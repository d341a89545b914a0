"""Test whether the difference between evaluations is more than chance: `python -m mora.evaluate.compare RUN_A RUN_B`.

It reads logged samples, or the scores in results/documents alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mora import digests
from mora.errors import DataError, ends_in_one_line

from . import documents, samples
from .aggregate import aggregate, bootstrap, items_of
from .logged import LoggedSamples

DRAWS = 10_000


@dataclass(frozen=True)
class Comparison:
    """The difference `b - a` with its 95% interval, the bootstrap's two-sided p, and McNemar's p if all items are 0 or 1."""

    task: str
    documents: int
    a: float
    b: float
    low: float
    high: float
    p: float
    mcnemar_p: float | None

    @property
    def difference(self) -> float:
        return self.b - self.a


def compare(a: LoggedSamples, b: LoggedSamples, draws: int = DRAWS) -> Comparison:
    """Compare two runs, paired over the same documents. The bootstrap draws whole clusters.

    Raises:
        DataError: The runs did not score the same documents with the same prompts, or all documents are one cluster.
    """
    task = a.header["task"]
    for field in ("task", "prompts", "aggregation"):
        if a.header[field] != b.header[field]:
            raise DataError(
                f"{task}: {field} {a.header[field]!r} and {b.header[field]!r} differ: score both on the same documents"
            )
    headline = a.header.get("headline", "score")
    if not a.rows or headline not in a.rows[0]:
        raise DataError(f"{task}: its samples have no {headline!r}: only this suite's tasks can be compared")
    kind = a.header["aggregation"]
    items_a, items_b = (_items(logged) for logged in (a, b))
    if len(items_a) != len(items_b):
        raise DataError(f"{task}: {len(items_a)} and {len(items_b)} documents: score both on the same ones")
    clusters = [row.get("cluster") for row in a.rows]
    clustered = None if clusters[0] is None else clusters
    if len(items_a if clustered is None else set(clustered)) < 2:
        raise DataError(
            f"{task}: all {len(items_a)} documents are one cluster, which has no spread: score more documents"
        )
    drawn = bootstrap(kind, items_b, clustered, draws) - bootstrap(kind, items_a, clustered, draws)
    low, high = np.quantile(drawn, [0.025, 0.975])
    binary = kind == "mean" and clustered is None and set(items_a) | set(items_b) <= {0.0, 1.0}
    return Comparison(
        task,
        len(items_a),
        aggregate(kind, items_a),
        aggregate(kind, items_b),
        float(low),
        float(high),
        two_sided_p(drawn),
        mcnemar(items_a, items_b) if binary else None,
    )


def _read(path: Path) -> dict[str, LoggedSamples]:
    """Return the samples by task. Raises DamagedFileError if results/digests.txt names the file, with another digest."""
    if not path.name.endswith(documents.SUFFIX):
        return samples.read(path)
    if path.is_file() and path.resolve().parent.name == "documents":
        digests.check(path.resolve())
    return documents.read(path)


def two_sided_p(drawn: np.ndarray) -> float:
    """Return twice the share of draws whose difference is on the rarer side of zero. One is added to both counts."""
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def mcnemar(a: list[float], b: list[float]) -> float:
    """Return McNemar's exact two-sided p, from the documents on which exactly one of the two runs is right."""
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    from scipy import stats  # takes a second to import

    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for all comparisons together (Holm 1979)."""
    m, order = len(p_values), np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate([(m - rank) * p_values[i] for rank, i in enumerate(order)])
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in adjusted]


def table(baseline: str, others: list[str]) -> str:
    """Return a Markdown table that compares each run with the baseline, by shared task. Holm's correction is over all lines.

    A task that cannot be compared is named below the table. Raises DataError if no task can.
    """
    first = _read(Path(baseline))
    lines: list[tuple[str, Comparison]] = []
    left_out: dict[str, None] = {}
    for other in others:
        second = _read(Path(other))
        shared = [task for task in first if task in second]
        if not shared:
            raise DataError(f"{baseline} and {other} share no task")
        for task in shared:
            try:
                lines.append((other, compare(first[task], second[task])))
            except DataError as error:
                left_out[f"{other}: {error}"] = None
    if not lines:
        raise DataError("; ".join(left_out))
    adjusted = holm([c.p if c.mcnemar_p is None else c.mcnemar_p for _, c in lines])
    out = [f"Against {baseline}.", "", "| run | task | n | baseline | run | difference [95%] | p | McNemar | Holm |"]
    out.append("|" + "---|" * 9)
    for (other, c), corrected in zip(lines, adjusted, strict=True):
        exact = "-" if c.mcnemar_p is None else f"{c.mcnemar_p:.4f}"
        span = f"{c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}]"
        cells = [
            other,
            c.task,
            str(c.documents),
            f"{c.a:.4f}",
            f"{c.b:.4f}",
            span,
            f"{c.p:.4f}",
            exact,
            f"{corrected:.4f}",
        ]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, *(f"\nNot compared: {reason}" for reason in left_out)])


def _items(logged: LoggedSamples) -> list[Any]:
    """Return the items of the headline metric. Raises DataError if a row has none, or one of the wrong kind."""
    try:
        return items_of(
            logged.header["aggregation"], [row[logged.header.get("headline", "score")] for row in logged.rows]
        )
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{logged.header['task']}: its samples are damaged ({error}): score the model again") from error


def parse(arguments: list[str] | None = None, prog: str = "python -m mora.evaluate.compare") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("baseline", help="a folder with samples/, or a file of results/documents")
    parser.add_argument("run", nargs="+", help="those to compare with it")
    return parser.parse_args(arguments)


@ends_in_one_line("mora.evaluate.compare")
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    print(table(options.baseline, options.run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
