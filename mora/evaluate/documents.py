"""The scores of all documents of a run, beside its result: `results/documents/<run_id>.jsonl.zst`, one line per task.

The file is enough to compute every interval again, and holds no text. A line has the task, how its score is aggregated, a
hash of its prompts in order, the items that are aggregated (0 or 1; log-likelihood and tokens; labels), and their clusters,
if any.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zstandard

from mora.errors import DataError, one_line
from mora.io import replace_file

from .aggregate import items_of
from .logged import LoggedSamples

SUFFIX = ".jsonl.zst"
LEVEL = 19
DIGITS = 6  # kept of a log-likelihood


def write(path: Path, logged: dict[str, LoggedSamples]) -> None:
    """Write the items of every task's headline metric, atomically. Nothing is written if no task has one."""
    lines = [_line(task) for task in logged.values() if task.rows and task.header.get("headline") in task.rows[0]]
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress("".join(lines).encode()))


def read(path: Path) -> dict[str, LoggedSamples]:
    """Read every task's documents. Raises DataError if the file is damaged."""
    try:
        text = zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=2**30).decode()
        return {entry["header"]["task"]: _logged(entry) for entry in map(json.loads, text.splitlines())}
    except (OSError, zstandard.ZstdError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} holds no document scores, or is truncated ({one_line(error):.300}): score the model again"
        ) from error


def _line(logged: LoggedSamples) -> str:
    chosen = [row for row in logged.rows if row.get("filter", "none") == logged.rows[0].get("filter", "none")]
    clusters = [row["cluster"] for row in chosen]
    items = [_short(row[logged.header["headline"]]) for row in chosen]
    values = {"header": logged.header, "items": items, "clusters": None if clusters[0] is None else clusters}
    return json.dumps(values, separators=(",", ":")) + "\n"


def _short(item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        return [_short(part) for part in item]
    if isinstance(item, float):
        return (
            int(item)
            if item.is_integer()
            else float(f"{item:.{DIGITS}g}")
            if abs(item) < 1
            else round(item, DIGITS - 2)
        )
    return item


def _logged(entry: dict[str, Any]) -> LoggedSamples:
    header, items, clusters = entry["header"], entry["items"], entry["clusters"] or [None] * len(entry["items"])
    for name in ("task", "aggregation", "headline", "prompts"):
        if not isinstance(header[name], str):
            raise ValueError(f"header.{name}={header[name]!r}: expected text")
    headline = header["headline"]
    items_of(header["aggregation"], items)
    set(clusters)  # raises if a value cannot be hashed, and so cannot name a cluster
    return LoggedSamples(header, [{"cluster": c, headline: item} for c, item in zip(clusters, items, strict=True)])
